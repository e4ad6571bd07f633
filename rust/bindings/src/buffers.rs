//! Bytes of Python objects, copied without forming a reference to memory others may write to.

use bytes::Bytes;
use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::PyBufferError;
use pyo3::prelude::*;

/// The memory of an object that offers it contiguously, as one run of bytes.
pub(crate) fn contiguous(data: &Bound<'_, PyAny>) -> PyResult<PyUntypedBuffer> {
    let buffer = PyUntypedBuffer::get(data)?;
    if buffer.is_c_contiguous() {
        Ok(buffer)
    } else {
        Err(PyBufferError::new_err("the buffer is not contiguous"))
    }
}

/// A copy of `length` bytes of `buffer`, from `offset` on.
///
/// # Panics
/// If the buffer is shorter.
pub(crate) fn copy_out(buffer: &PyUntypedBuffer, offset: usize, length: usize) -> Bytes {
    assert!(offset <= buffer.len_bytes() && length <= buffer.len_bytes() - offset);
    let mut copy = Vec::with_capacity(length);
    // SAFETY: `buffer` keeps the memory exported, hence allocated and of constant size, and the
    // range was checked. No reference to it is formed, so that other threads may write to it. The
    // vector has room for `length` bytes, which are initialised when its length says so.
    unsafe {
        std::ptr::copy_nonoverlapping(
            buffer.buf_ptr().cast::<u8>().add(offset),
            copy.as_mut_ptr(),
            length,
        );
        copy.set_len(length);
    }
    copy.into()
}
