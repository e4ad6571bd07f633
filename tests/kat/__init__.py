"""ML-KEM-768: known answers, and agreement with independent implementations."""
