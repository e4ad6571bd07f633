//! What of a received batch the engine gets to see.
//!
//! Pure: works on the buffers the engine lent. Datagrams that cannot be QUIC are counted and taken
//! out; the rest keeps its order.

use std::io::IoSliceMut;

use noq_udp::RecvMeta;

use crate::{
    addr::{canonical_ip, engine_form},
    counters::Counters,
    junk::{Junk, classify},
    synthetic::is_synthetic,
};

/// Filters the first `received` entries and brings their addresses into the form the engine wants.
/// Openers are taken out and handed to `opener`.
///
/// Returns how many are left, at the front of both slices. Buffers are swapped, never copied,
/// unless a coalesced one loses a segment from its middle.
pub(crate) fn accept(
    counters: &Counters,
    bufs: &mut [IoSliceMut<'_>],
    meta: &mut [RecvMeta],
    received: usize,
    mut opener: impl FnMut(&[u8], &RecvMeta),
) -> usize {
    for (buf, entry) in bufs.iter_mut().zip(meta.iter_mut()).take(received) {
        entry.addr = engine_form(entry.addr);
        entry.dst_ip = entry.dst_ip.map(canonical_ip);
        if is_synthetic(entry.addr.ip()) {
            Counters::bump(&counters.recv_synthetic_source);
            entry.len = 0;
        } else {
            keep_quic(counters, buf, entry, &mut opener);
        }
    }
    retain(bufs, meta, received, |entry| entry.len > 0)
}

/// Moves those of the first `count` entries to the front that `keep` wants, in their order, and
/// returns how many they are.
pub(crate) fn retain(
    bufs: &mut [IoSliceMut<'_>],
    meta: &mut [RecvMeta],
    count: usize,
    mut keep: impl FnMut(&RecvMeta) -> bool,
) -> usize {
    let mut kept = 0;
    for index in 0..count {
        if keep(&meta[index]) {
            if kept != index {
                bufs.swap(kept, index);
                meta.swap(kept, index);
            }
            kept += 1;
        }
    }
    kept
}

/// Takes the segments out of one buffer that cannot be QUIC, shortening it.
fn keep_quic(
    counters: &Counters,
    buf: &mut [u8],
    entry: &mut RecvMeta,
    opener: &mut impl FnMut(&[u8], &RecvMeta),
) {
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
            Some(Junk::Opener) => opener(&buf[start..next], entry),
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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::synthetic::SyntheticAddr;

    const PEER: &str = "192.0.2.7:4433";

    fn entry(len: usize, stride: usize) -> RecvMeta {
        let mut entry = RecvMeta::default();
        entry.addr = PEER.parse().expect("literal");
        entry.len = len;
        entry.stride = stride;
        entry
    }

    /// A buffer as the engine takes it apart: where from, and its datagrams.
    type Seen = (SocketAddr, Vec<Vec<u8>>);

    /// Runs the filter over buffers with one entry each and returns what the engine would see.
    fn run(inputs: Vec<(Vec<u8>, RecvMeta)>) -> (Vec<Seen>, Counters) {
        let counters = Counters::default();
        let (mut storage, mut meta): (Vec<_>, Vec<_>) = inputs.into_iter().unzip();
        let mut bufs: Vec<_> = storage.iter_mut().map(|buf| IoSliceMut::new(buf)).collect();
        let count = meta.len();
        let opener = |_: &[u8], _: &RecvMeta| counters.junk(Junk::Opener);
        let kept = accept(&counters, &mut bufs, &mut meta, count, opener);
        let seen = (0..kept)
            .map(|i| {
                let datagrams = bufs[i][..meta[i].len].chunks(meta[i].stride);
                (meta[i].addr, datagrams.map(<[u8]>::to_vec).collect())
            })
            .collect();
        (seen, counters)
    }

    #[test]
    fn addresses_are_brought_into_their_forms() {
        let counters = Counters::default();
        let mut storage = vec![0x40; 32];
        let mut bufs = [IoSliceMut::new(&mut storage)];
        let mut meta = [entry(32, 32)];
        meta[0].dst_ip = Some("::ffff:192.0.2.1".parse().expect("literal"));
        assert_eq!(accept(&counters, &mut bufs, &mut meta, 1, |_, _| ()), 1);
        assert_eq!(
            meta[0].addr,
            "[::ffff:192.0.2.7]:4433".parse().expect("literal")
        );
        assert_eq!(meta[0].dst_ip, Some("192.0.2.1".parse().expect("literal")));
    }

    #[test]
    fn a_synthetic_source_on_the_wire_is_a_forgery() {
        let mut forged = entry(32, 32);
        forged.addr = SyntheticAddr::new(0, 0).socket_addr();
        let (seen, counters) = run(vec![(vec![0x40; 32], forged)]);
        assert!(seen.is_empty());
        assert_eq!(counters.snapshot().recv_synthetic_source, 1);
    }

    #[test]
    fn nothing_at_all_is_one_empty_datagram() {
        let (seen, counters) = run(vec![(vec![0; 32], entry(0, 0))]);
        assert!(seen.is_empty());
        assert_eq!(counters.snapshot().junk_empty, 1);
    }

    #[test]
    fn a_stride_of_zero_does_not_hang_the_engine() {
        let (seen, _) = run(vec![(vec![0x40; 32], entry(32, 0))]);
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].1, [vec![0x40; 32]]);
    }

    proptest! {
        /// Whatever mixture of datagrams is coalesced how, the engine sees exactly those that may
        /// be QUIC, in their order, with their boundaries; and every other one is counted once.
        #[test]
        fn exactly_the_junk_goes(
            batches in proptest::collection::vec(
                (12_usize..40, proptest::collection::vec(any::<u8>(), 1..6), 1_usize..40),
                0..8,
            ),
        ) {
            let mut inputs = Vec::new();
            let mut expected = Vec::new();
            let mut junk = 0;
            for (stride, firsts, last) in batches {
                let mut bytes = Vec::new();
                let mut datagrams = Vec::new();
                for (position, first) in firsts.iter().enumerate() {
                    let len = if position + 1 == firsts.len() { last.min(stride) } else { stride };
                    let mut datagram = vec![position as u8 + 1; len];
                    datagram[0] = *first;
                    bytes.extend_from_slice(&datagram);
                    match classify(&datagram) {
                        Some(Junk::Empty) => unreachable!("no empty segments"),
                        Some(_) => junk += 1,
                        None => datagrams.push(datagram),
                    }
                }
                let len = bytes.len();
                inputs.push((bytes, entry(len, stride)));
                if !datagrams.is_empty() {
                    expected.push((engine_form(PEER.parse().expect("literal")), datagrams));
                }
            }
            let (seen, counters) = run(inputs);
            prop_assert_eq!(seen, expected);
            let counted: u64 = counters.snapshot().iter().map(|(_, value)| value).sum();
            prop_assert_eq!(counted, junk);
        }
    }
}
