//! What can go wrong, and which exception of `anyreach.errors` says so. The only place where Rust
//! errors become Python exceptions.

use std::io;

use anyreach_masque::server::ServeError;
use anyreach_quic::{CloseReason, Connection, DialError, EndpointError, IdentityError};
use noq::{ReadError, SendDatagramError, StoppedError, WriteError};
use pyo3::exceptions::{PyException, PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{IntoPyDict, PyBytes, PyDict, PyType};

pyo3::create_exception!(
    anyreach._core,
    DialFailed,
    PyException,
    "args: (reason, detail, actual_peer_id or None); reason as in errors.Attempt."
);

/// Everything a call from Python can fail with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The object was made before a fork.
    #[error("made before os.fork(): threads do not survive a fork, create a new node in the child")]
    Forked,
    /// No threads, descriptors or memory for the runtime or a bridge.
    #[error("the runtime could not be started: {0}")]
    Runtime(io::Error),
    /// The endpoint was closed.
    #[error("the node is closed")]
    EndpointClosed,
    /// The socket could not be bound, or no endpoint be set up on it.
    #[error("{0}")]
    Bind(#[from] EndpointError),
    /// The key is unusable.
    #[error("{0}")]
    Identity(#[from] IdentityError),
    /// The relay cannot be reached as configured.
    #[error("{0}")]
    Serve(#[from] ServeError),
    /// There is no socket, or it cannot send.
    #[error("{0}")]
    Socket(io::Error),
    /// There is no way to an address.
    #[error("{0}")]
    Unreachable(String),
    /// An attempt to reach a peer failed.
    #[error("{}", .0.detail)]
    Dial(DialError),
    /// The connection is gone.
    #[error("{}", describe(.0))]
    Lost(CloseReason),
    /// The peer abandoned the stream.
    #[error("the peer reset the stream with code {0}")]
    Reset(u64),
    /// The peer does not want to read on.
    #[error("the peer stopped reading the stream with code {0}")]
    Stopped(u64),
    /// This side ended that direction of the stream before.
    #[error("{0}")]
    StreamClosed(&'static str),
    /// An argument is out of range.
    #[error("{0}")]
    Value(String),
    /// The engine or a runtime task broke an invariant.
    #[error("internal error: {0}")]
    Internal(String),
}

impl Failure {
    pub(crate) fn read(error: ReadError, connection: &Connection) -> Self {
        match error {
            ReadError::Reset(code) => Self::Reset(code.into_inner()),
            ReadError::ConnectionLost(error) => Self::Lost(connection.reason(&error)),
            ReadError::ClosedStream => {
                Self::StreamClosed("the stream was stopped or read to its end")
            }
            ReadError::ZeroRttRejected => Self::Internal(error.to_string()),
        }
    }

    pub(crate) fn write(error: WriteError, connection: &Connection) -> Self {
        match error {
            WriteError::Stopped(code) => Self::Stopped(code.into_inner()),
            WriteError::ConnectionLost(error) => Self::Lost(connection.reason(&error)),
            WriteError::ClosedStream => Self::StreamClosed("the stream was finished or reset"),
            WriteError::ZeroRttRejected => Self::Internal(error.to_string()),
        }
    }

    pub(crate) fn stopped(error: StoppedError, connection: &Connection) -> Self {
        match error {
            StoppedError::ConnectionLost(error) => Self::Lost(connection.reason(&error)),
            StoppedError::ZeroRttRejected => Self::Internal(error.to_string()),
        }
    }

    pub(crate) fn datagram(error: SendDatagramError, connection: &Connection) -> Self {
        match error {
            SendDatagramError::ConnectionLost(error) => Self::Lost(connection.reason(&error)),
            other => Self::Value(other.to_string()),
        }
    }

    fn raise(self, py: Python<'_>) -> PyResult<PyErr> {
        let text = self.to_string();
        let (class, keywords): (_, Option<Bound<'_, PyDict>>) = match self {
            Self::Forked => ("ForkError", None),
            Self::EndpointClosed => ("NodeClosed", None),
            Self::Bind(_) | Self::Serve(_) => ("BindError", None),
            Self::Identity(_) => ("IdentityError", None),
            Self::StreamClosed(_) => ("StreamClosed", None),
            Self::Lost(reason) => {
                let keywords = [("reason", reason.kind)].into_py_dict(py)?;
                keywords.set_item("code", reason.code)?;
                ("ConnectionLost", Some(keywords))
            }
            Self::Reset(code) | Self::Stopped(code) => {
                ("StreamReset", Some([("code", code)].into_py_dict(py)?))
            }
            Self::Internal(_) => ("AnyreachError", None),
            Self::Value(text) => return Ok(PyValueError::new_err(text)),
            Self::Socket(error) => return Ok(error.into()),
            Self::Runtime(_) => return Ok(PyOSError::new_err(text)),
            Self::Unreachable(text) => {
                return Ok(DialFailed::new_err(("unreachable", text, py.None())));
            }
            Self::Dial(error) => {
                let actual = error.actual.map(|id| PyBytes::new(py, &id.0).unbind());
                return Ok(DialFailed::new_err((error.reason, error.detail, actual)));
            }
        };
        let class = exceptions(py)?.getattr(class)?.cast_into::<PyType>()?;
        Ok(PyErr::from_value(class.call((text,), keywords.as_ref())?))
    }
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> Self {
        // If even the exception cannot be made, what prevented it is the better report.
        Python::attach(|py| failure.raise(py).unwrap_or_else(|error| error))
    }
}

/// One sentence for people.
fn describe(reason: &CloseReason) -> String {
    let what = match reason.kind {
        "closed" => "the peer closed the connection",
        "local" => "the connection was closed by this side",
        "timeout" => "the connection timed out",
        "reset" => "the peer lost its state of the connection",
        "replaced" => {
            "a newer connection took its place, of the peer or of another node with this node's key"
        }
        _ => "the connection broke",
    };
    if reason.message.is_empty() {
        what.to_owned()
    } else {
        format!("{what}: {}", reason.message)
    }
}

/// The module `anyreach.errors`, imported when the first error needs it: at import time of this
/// module the package may still be half-initialised.
fn exceptions(py: Python<'_>) -> PyResult<&Bound<'_, PyModule>> {
    static MODULE: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    MODULE
        .get_or_try_init(py, || Ok(py.import("anyreach.errors")?.unbind()))
        .map(|module| module.bind(py))
}
