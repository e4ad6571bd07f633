//! The loops that feed packets, time and commands to the middleboxes.

use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use crate::device::{self, Commands, Tun};
use crate::link::{Quality, Shaper};
use crate::nat::{Nat, Policy};
use crate::words::{Error, Words};

/// Packets read from one device before the others and the clock get their turn.
const BURST: usize = 64;

/// How often a NAT forgets what has expired; it never *uses* what has.
const SWEEP: Duration = Duration::from_secs(1);

/// Runs both directions of a line: `up=` and `down=` name its TUN devices. A command is a whole new
/// quality, answered by an event.
pub(crate) fn link(words: &Words) -> Result<(), Error> {
    device::be_punctual();
    let quality = Quality::parse(words)?;
    let seed: u64 = words.get("seed")?.unwrap_or(1);
    let mut directions = Vec::new();
    for (key, seed) in [("up", seed), ("down", seed.wrapping_add(1))] {
        let tun = Tun::open(&words.need::<String>(key)?)?;
        directions.push((tun, Shaper::new(quality, seed)));
    }
    let mut commands = Commands::new()?;
    let mut descriptors = vec![commands.as_raw_fd()];
    descriptors.extend(directions.iter().map(|(tun, _)| tun.as_raw_fd()));
    println!(r#"{{"event":"ready"}}"#);
    loop {
        let next = directions
            .iter()
            .filter_map(|(_, shaper)| shaper.next())
            .min();
        let timeout = next.map(|next| next.saturating_duration_since(Instant::now()));
        device::wait(&descriptors, timeout)?;
        for (tun, shaper) in &mut directions {
            for _ in 0..BURST {
                let Some(packet) = tun.read()? else { break };
                shaper.push(packet, Instant::now());
            }
            let now = Instant::now();
            while let Some(packet) = shaper.pop(now) {
                tun.write(&packet);
            }
        }
        let Some(lines) = commands.read()? else {
            return Ok(());
        };
        for line in lines {
            let quality = Quality::parse(&Words::parse(line.split_whitespace())?)?;
            for (_, shaper) in &mut directions {
                shaper.set(quality);
            }
            println!(r#"{{"event":"set"}}"#);
        }
    }
}

/// Runs a NAT on the TUN device `tun=` with the external address `address=` and a policy. Commands:
/// `flush` forgets everything, `address=A` as well and changes the external address; each is
/// answered by an event.
pub(crate) fn nat(words: &Words) -> Result<(), Error> {
    device::be_punctual();
    let mut tun = Tun::open(&words.need::<String>("tun")?)?;
    let seed = words.get("seed")?.unwrap_or(1);
    let mut nat = Nat::new(Policy::parse(words)?, words.need("address")?, seed);
    let mut commands = Commands::new()?;
    let descriptors = [commands.as_raw_fd(), tun.as_raw_fd()];
    let mut swept = Instant::now();
    println!(r#"{{"event":"ready"}}"#);
    loop {
        device::wait(&descriptors, Some(SWEEP))?;
        let now = Instant::now();
        for _ in 0..BURST {
            let Some(packet) = tun.read()? else { break };
            let length = packet.len();
            if nat.translate(packet, now).is_some() {
                // The packet is still in the device's buffer.
                tun.write_back(length);
            }
        }
        if now - swept >= SWEEP {
            nat.expire(now);
            swept = now;
        }
        let Some(lines) = commands.read()? else {
            return Ok(());
        };
        for line in lines {
            if line != "flush" {
                let address: Ipv4Addr = Words::parse([&line])?.need("address")?;
                nat.readdress(address);
            }
            nat.flush();
            println!(r#"{{"event":"set"}}"#);
        }
    }
}
