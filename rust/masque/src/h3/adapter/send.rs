//! The sending half of a stream.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use h3::{
    error::Code,
    quic::{self, ConnectionErrorIncoming, StreamErrorIncoming, StreamId, WriteBuf},
};
use noq::WriteError;

use super::{code, connection_error, lost, stream_id};

/// The sending half of a stream.
pub(crate) struct SendStream {
    stream: noq::SendStream,
    /// The frame being written.
    frame: Option<WriteBuf<Bytes>>,
}

impl SendStream {
    pub(super) fn new(stream: noq::SendStream) -> Self {
        Self {
            stream,
            frame: None,
        }
    }
}

impl quic::SendStream<Bytes> for SendStream {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        while let Some(frame) = &mut self.frame {
            if !frame.has_remaining() {
                self.frame = None;
                break;
            }
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, frame.chunk()))
                .map_err(write_error)?;
            frame.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        if self.frame.is_some() {
            return Err(lost(ConnectionErrorIncoming::InternalError(
                "a frame was to be sent before the last one was written".into(),
            )));
        }
        self.frame = Some(data.into());
        Ok(())
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        ready!(self.poll_ready(cx))?;
        Poll::Ready(
            self.stream
                .finish()
                .map_err(|error| StreamErrorIncoming::Unknown(Box::new(error))),
        )
    }

    fn reset(&mut self, reset_code: u64) {
        self.frame = None;
        // Fails if it has ended already, which is as good.
        let _ = self.stream.reset(code(reset_code));
    }

    fn send_id(&self) -> StreamId {
        stream_id(self.stream.id())
    }
}

impl Drop for SendStream {
    fn drop(&mut self) {
        if self.frame.is_some() {
            // The engine would end the stream in good order, and a frame cut short by that is an
            // error of the whole connection (RFC 9114, section 7.1).
            let _ = self.stream.reset(code(Code::H3_REQUEST_CANCELLED.value()));
        }
    }
}

fn write_error(error: WriteError) -> StreamErrorIncoming {
    match error {
        WriteError::Stopped(code) => StreamErrorIncoming::StreamTerminated {
            error_code: code.into_inner(),
        },
        WriteError::ConnectionLost(error) => lost(connection_error(error)),
        other => StreamErrorIncoming::Unknown(Box::new(other)),
    }
}
