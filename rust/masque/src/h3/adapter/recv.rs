//! The receiving half of a stream, with a bound on what is read ahead.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use h3::quic::{self, StreamErrorIncoming, StreamId};
use noq::ReadError;

use super::{code, connection_error, lost, stream_id};

/// Most bytes of one stream that are read and not used up. More than the largest header section
/// we accept takes; a frame that `h3` would keep whole and that is larger than this never becomes
/// whole, and its stream stands still at the expense of who sent it.
pub(crate) const STREAM_BUFFER: usize = 32 << 10;

/// Bytes read at once. Pieces that arrived in small packets are joined, because the work of `h3`
/// grows with the square of their number.
const READ_SIZE: usize = 4 << 10;

/// The receiving half of a stream.
pub(crate) struct RecvStream {
    stream: noq::RecvStream,
    budget: Arc<Budget>,
    scratch: Box<[u8]>,
}

impl RecvStream {
    pub(super) fn new(stream: noq::RecvStream) -> Self {
        Self {
            stream,
            budget: Arc::default(),
            scratch: Box::default(),
        }
    }

    pub(super) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    pub(super) fn quarter_id(&self) -> u64 {
        self.stream.id().index()
    }
}

impl quic::RecvStream for RecvStream {
    type Buf = Bytes;

    fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Self::Buf>, StreamErrorIncoming>> {
        ready!(self.budget.poll_room(cx));
        if self.scratch.is_empty() {
            // Streams that never carry anything, such as those of QPACK, cost nothing.
            self.scratch = vec![0; READ_SIZE].into();
        }
        let read = ready!(self.stream.poll_read(cx, &mut self.scratch));
        Poll::Ready(match read {
            Ok(0) => {
                self.budget.lock().ended = true;
                Ok(None)
            }
            Ok(length) => Ok(Some(self.budget.hold(&self.scratch[..length]))),
            Err(error) => Err(read_error(error)),
        })
    }

    fn stop_sending(&mut self, error_code: u64) {
        // Fails if it has ended already, which is as good.
        let _ = self.stream.stop(code(error_code));
    }

    fn recv_id(&self) -> StreamId {
        stream_id(self.stream.id())
    }
}

impl Drop for RecvStream {
    fn drop(&mut self) {
        // The engine would say 0, which is no code of HTTP/3. No error if it has ended.
        let _ = self
            .stream
            .stop(code(h3::error::Code::H3_REQUEST_CANCELLED.value()));
    }
}

fn read_error(error: ReadError) -> StreamErrorIncoming {
    match error {
        ReadError::Reset(code) => StreamErrorIncoming::StreamTerminated {
            error_code: code.into_inner(),
        },
        ReadError::ConnectionLost(error) => lost(connection_error(error)),
        other => StreamErrorIncoming::Unknown(Box::new(other)),
    }
}

/// How much of a stream is read and not used up.
#[derive(Default)]
pub(super) struct Budget(Mutex<Held>);

#[derive(Default)]
struct Held {
    bytes: usize,
    /// The end of the stream has been read.
    ended: bool,
    waiting: Option<Waker>,
}

impl Budget {
    /// Whether the stream has ended and all of it is used up.
    pub(super) fn drained(&self) -> bool {
        let held = self.lock();
        held.ended && held.bytes == 0
    }

    /// Waits until there is room for more.
    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut held = self.lock();
        if held.bytes < STREAM_BUFFER {
            return Poll::Ready(());
        }
        held.waiting = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Counts `data` until the last slice of the result is dropped.
    fn hold(self: &Arc<Self>, data: &[u8]) -> Bytes {
        self.lock().bytes += data.len();
        Bytes::from_owner(Counted {
            data: data.into(),
            budget: self.clone(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = self.lock();
        f.debug_struct("Budget")
            .field("bytes", &held.bytes)
            .field("ended", &held.ended)
            .finish()
    }
}

/// Bytes counted in a [`Budget`].
struct Counted {
    data: Box<[u8]>,
    budget: Arc<Budget>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let waiting = {
            let mut held = self.budget.lock();
            held.bytes -= self.data.len();
            if held.bytes < STREAM_BUFFER {
                held.waiting.take()
            } else {
                None
            }
        };
        if let Some(waker) = waiting {
            waker.wake();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn room(budget: &Budget) -> bool {
        budget
            .poll_room(&mut Context::from_waker(Waker::noop()))
            .is_ready()
    }

    #[test]
    fn room_comes_back_with_the_last_slice() {
        let budget = Arc::new(Budget::default());
        let mut held = budget.hold(&vec![7; STREAM_BUFFER]);
        assert!(!room(&budget));
        let slice = held.split_to(10);
        drop(held);
        assert!(!room(&budget));
        assert_eq!(slice, [7; 10][..]);
        drop(slice);
        assert!(room(&budget));
    }

    #[test]
    fn a_stream_is_drained_when_ended_and_used_up() {
        let budget = Arc::new(Budget::default());
        let held = budget.hold(b"rest");
        budget.lock().ended = true;
        assert!(!budget.drained());
        drop(held);
        assert!(budget.drained());
    }
}
