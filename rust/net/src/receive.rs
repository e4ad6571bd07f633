//! What of a received batch the engine gets to see.
//!
//! Pure: works on the buffers the engine lent. Datagrams that cannot be QUIC are counted and taken
//! out; the rest keeps its order.

use std::io::IoSliceMut;

use noq_udp::RecvMeta;

use crate::{
    addr::{canonical_ip, engine_form},
    counters::Counters,
    junk::classify,
};

/// Filters the first `received` entries and brings their addresses into the form the engine wants.
///
/// Returns how many are left, at the front of both slices. Buffers are swapped, never copied,
/// unless a coalesced one loses a segment from its middle.
pub(crate) fn accept(
    counters: &Counters,
    bufs: &mut [IoSliceMut<'_>],
    meta: &mut [RecvMeta],
    received: usize,
) -> usize {
    let mut kept = 0;
    for index in 0..received {
        let entry = &mut meta[index];
        keep_quic(counters, &mut bufs[index], entry);
        if entry.len == 0 {
            continue;
        }
        entry.addr = engine_form(entry.addr);
        entry.dst_ip = entry.dst_ip.map(canonical_ip);
        if kept != index {
            bufs.swap(kept, index);
            meta.swap(kept, index);
        }
        kept += 1;
    }
    kept
}

/// Takes the segments out of one buffer that cannot be QUIC, shortening it.
fn keep_quic(counters: &Counters, buf: &mut [u8], entry: &mut RecvMeta) {
    let len = entry.len.min(buf.len());
    if len == 0 {
        if let Some(kind) = classify(&[]) {
            counters.junk(kind);
        }
        entry.len = 0;
        return;
    }
    // The engine walks the buffer in strides and would never get on with a stride of zero.
    entry.stride = if entry.stride == 0 {
        len
    } else {
        entry.stride.min(len)
    };
    let mut end = 0;
    let mut start = 0;
    while start < len {
        let next = (start + entry.stride).min(len);
        match classify(&buf[start..next]) {
            Some(kind) => counters.junk(kind),
            None => {
                // Only the last segment may be shorter than the stride, and nothing follows it, so
                // moving whole segments down keeps the boundaries where the engine looks for them.
                if end != start {
                    buf.copy_within(start..next, end);
                }
                end += next - start;
            }
        }
        start = next;
    }
    entry.len = end;
}
