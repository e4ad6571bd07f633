//! The key pair of a node.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::errors::Failure;

/// An ML-DSA-65 key pair (FIPS 204). Immutable and without threads, so it survives a fork.
#[pyclass(frozen, module = "anyreach._core")]
pub(crate) struct Identity(pub(crate) Arc<anyreach_quic::Identity>);

#[pymethods]
impl Identity {
    /// Makes a fresh key pair.
    #[staticmethod]
    fn generate(py: Python<'_>) -> Result<Self, Failure> {
        let identity = py.detach(anyreach_quic::Identity::generate)?;
        Ok(Self(Arc::new(identity)))
    }

    /// Reads a key pair from PKCS#8 DER.
    #[staticmethod]
    fn from_pkcs8(der: &[u8]) -> Result<Self, Failure> {
        let identity = anyreach_quic::Identity::from_pkcs8(der)?;
        Ok(Self(Arc::new(identity)))
    }

    /// The private key as PKCS#8 DER.
    fn to_pkcs8<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.0.to_pkcs8())
    }

    /// The public key as DER SubjectPublicKeyInfo.
    #[getter]
    fn public_key<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.0.public_key())
    }

    /// SHA-256 of the public key.
    #[getter]
    fn peer_id<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.peer_id().0)
    }
}
