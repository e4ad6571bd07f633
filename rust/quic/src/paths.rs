//! Which path of a connection data goes by, and which paths are dead: decisions without sockets and
//! clocks. They are carried out by the endpoint's steward.

pub(crate) mod choice;
mod floor;
pub(crate) mod health;
pub(crate) mod vigil;
