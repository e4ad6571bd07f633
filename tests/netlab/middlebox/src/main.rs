//! Middleboxes of the network laboratory (`tests/netlab`): `link`, a line with delay, jitter, loss
//! and a rate, and `nat`, an IPv4 NAT whose every behaviour is an explicit policy (RFC 4787).
//!
//! Both work on TUN devices which the laboratory made and routes packets through. They print one
//! JSON line when they are ready and take commands from standard input, one per line; they end
//! with it. Test equipment: the software under test shares no code with it.

#[cfg(target_os = "linux")]
mod device;
#[cfg(target_os = "linux")]
mod drive;
mod link;
mod nat;
mod random;
mod words;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    let mut arguments = std::env::args().skip(1);
    let role = arguments.next();
    let words = words::Words::parse(arguments);
    let done = match role.as_deref() {
        Some("link") => words.and_then(|words| drive::link(&words)),
        Some("nat") => words.and_then(|words| drive::nat(&words)),
        _ => Err("usage: middlebox link|nat key=value...".into()),
    };
    match done {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("middlebox: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("middlebox: only for Linux");
}
