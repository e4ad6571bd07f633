//! ML-KEM-768 (FIPS 203) of the library the handshakes use, reachable from Python so that it can
//! be held to known answers and to other implementations.
//!
//! Not an API for applications: connections negotiate their keys inside TLS. Byte layouts are
//! those of FIPS 203; randomness comes from the library, deterministic variants are not offered.

use aws_lc_rs::kem::{Ciphertext, DecapsulationKey, EncapsulationKey, ML_KEM_768};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// Length of an encapsulation key, FIPS 203 table 3.
const ENCAPSULATION_KEY_LEN: usize = 1184;
/// Length of a decapsulation key, FIPS 203 table 3.
const DECAPSULATION_KEY_LEN: usize = 2400;
/// Length of a ciphertext, FIPS 203 table 3.
const CIPHERTEXT_LEN: usize = 1088;

/// Two byte strings for Python.
type BytesPair<'py> = (Bound<'py, PyBytes>, Bound<'py, PyBytes>);

/// what can go wrong; Python sees `ValueError`, or `RuntimeError` where no input is to blame.
#[derive(Debug, thiserror::Error)]
enum KemError {
    /// An argument of the wrong size; the caller mixed up parameter sets or arguments.
    #[error("{what} must be {expected} bytes, not {actual}")]
    Length {
        what: &'static str,
        expected: usize,
        actual: usize,
    },
    /// The modulus check of FIPS 203 section 7.2 failed, or the key cannot be used.
    #[error("not a valid ML-KEM-768 encapsulation key")]
    EncapsulationKey,
    /// The hash check of FIPS 203 section 7.3 failed, or the key cannot be used.
    #[error("not a valid ML-KEM-768 decapsulation key")]
    DecapsulationKey,
    /// The library failed without bad input: no entropy or no memory.
    #[error("the cryptographic library failed to make an ML-KEM-768 key")]
    Library,
}

impl From<KemError> for PyErr {
    fn from(error: KemError) -> Self {
        match error {
            KemError::Library => PyRuntimeError::new_err(error.to_string()),
            _ => PyValueError::new_err(error.to_string()),
        }
    }
}

/// A new key pair: (decapsulation key, encapsulation key).
#[pyfunction]
pub(crate) fn mlkem768_generate(py: Python<'_>) -> PyResult<BytesPair<'_>> {
    let (decapsulation_key, encapsulation_key) = py.detach(generate)?;
    Ok((
        PyBytes::new(py, &decapsulation_key),
        PyBytes::new(py, &encapsulation_key),
    ))
}

/// A fresh shared secret for the holder of the key: (ciphertext, shared secret).
#[pyfunction]
pub(crate) fn mlkem768_encapsulate<'py>(
    py: Python<'py>,
    encapsulation_key: &[u8],
) -> PyResult<BytesPair<'py>> {
    let (ciphertext, secret) = py.detach(|| encapsulate(encapsulation_key))?;
    Ok((PyBytes::new(py, &ciphertext), PyBytes::new(py, &secret)))
}

/// The shared secret of a ciphertext, or the pseudorandom one of implicit rejection.
#[pyfunction]
pub(crate) fn mlkem768_decapsulate<'py>(
    py: Python<'py>,
    decapsulation_key: &[u8],
    ciphertext: &[u8],
) -> PyResult<Bound<'py, PyBytes>> {
    let secret = py.detach(|| decapsulate(decapsulation_key, ciphertext))?;
    Ok(PyBytes::new(py, &secret))
}

fn generate() -> Result<(Vec<u8>, Vec<u8>), KemError> {
    let key = DecapsulationKey::generate(&ML_KEM_768).map_err(|_| KemError::Library)?;
    let public = key.encapsulation_key().map_err(|_| KemError::Library)?;
    let private_bytes = key.key_bytes().map_err(|_| KemError::Library)?;
    let public_bytes = public.key_bytes().map_err(|_| KemError::Library)?;
    Ok((
        private_bytes.as_ref().to_vec(),
        public_bytes.as_ref().to_vec(),
    ))
}

fn encapsulate(key: &[u8]) -> Result<(Vec<u8>, Vec<u8>), KemError> {
    check_length("encapsulation_key", key, ENCAPSULATION_KEY_LEN)?;
    let key = EncapsulationKey::new(&ML_KEM_768, key).map_err(|_| KemError::EncapsulationKey)?;
    let (ciphertext, secret) = key.encapsulate().map_err(|_| KemError::EncapsulationKey)?;
    Ok((ciphertext.as_ref().to_vec(), secret.as_ref().to_vec()))
}

fn decapsulate(key: &[u8], ciphertext: &[u8]) -> Result<Vec<u8>, KemError> {
    check_length("decapsulation_key", key, DECAPSULATION_KEY_LEN)?;
    check_length("ciphertext", ciphertext, CIPHERTEXT_LEN)?;
    let key = DecapsulationKey::new(&ML_KEM_768, key).map_err(|_| KemError::DecapsulationKey)?;
    let secret = key
        .decapsulate(Ciphertext::from(ciphertext))
        .map_err(|_| KemError::DecapsulationKey)?;
    Ok(secret.as_ref().to_vec())
}

fn check_length(what: &'static str, bytes: &[u8], expected: usize) -> Result<(), KemError> {
    if bytes.len() == expected {
        return Ok(());
    }
    Err(KemError::Length {
        what,
        expected,
        actual: bytes.len(),
    })
}
