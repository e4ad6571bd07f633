"""Interoperability with QUIC, TLS and ML-KEM code that is not ours."""
