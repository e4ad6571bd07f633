//! TUN devices and waiting for them: the only code that talks to the kernel.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

/// Largest IP packet.
const MAX_PACKET: usize = 65_535;

/// A TUN device: reads and writes whole IP packets, never blocks.
#[derive(Debug)]
pub(crate) struct Tun {
    file: File,
    buffer: Box<[u8]>,
}

impl Tun {
    /// Attaches to the existing TUN interface of that name.
    pub(crate) fn open(name: &str) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")?;
        if name.len() >= libc::IFNAMSIZ {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "interface name too long",
            ));
        }
        // SAFETY: all bit patterns, zeros included, are valid for the C structure.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
        // SAFETY: the descriptor is open and the request outlives the call, which reads and writes
        // one `ifreq`.
        if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            file,
            buffer: vec![0; MAX_PACKET].into(),
        })
    }

    /// The next packet, if there is one.
    pub(crate) fn read(&mut self) -> io::Result<Option<&mut [u8]>> {
        match self.file.read(&mut self.buffer) {
            Ok(length) => Ok(Some(&mut self.buffer[..length])),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts the packet out that was read last, as it was changed in place.
    pub(crate) fn write_back(&mut self, length: usize) {
        let _ = self.file.write(&self.buffer[..length]);
    }

    /// Puts a packet out. One that the kernel refuses is lost, as any packet may be.
    pub(crate) fn write(&mut self, packet: &[u8]) {
        let _ = self.file.write(packet);
    }
}

impl AsRawFd for Tun {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Standard input, read in lines without blocking.
#[derive(Debug)]
pub(crate) struct Commands {
    file: File,
    partial: Vec<u8>,
}

impl Commands {
    /// Takes standard input.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: nobody else uses descriptor 0 in this program; dup makes an owned one.
        let fd = unsafe { libc::dup(0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was made just now and is owned by nobody else.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        // SAFETY: plain flags on an open descriptor.
        if unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            file,
            partial: Vec::new(),
        })
    }

    /// Whole lines that came in; `None` at the end of input.
    pub(crate) fn read(&mut self) -> io::Result<Option<Vec<String>>> {
        let mut chunk = [0; 4096];
        match self.file.read(&mut chunk) {
            Ok(0) => return Ok(None),
            Ok(length) => self.partial.extend_from_slice(&chunk[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        let Some(end) = self.partial.iter().rposition(|byte| *byte == b'\n') else {
            return Ok(Some(Vec::new()));
        };
        let whole: Vec<u8> = self.partial.drain(..=end).collect();
        Ok(Some(
            String::from_utf8_lossy(&whole)
                .lines()
                .map(str::to_owned)
                .collect(),
        ))
    }
}

impl AsRawFd for Commands {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Lets timeouts end when they should rather than when it is convenient (50 µs by default), and on
/// a busy machine before its other programs get their turn. A line that is late would be taken for
/// a slow one. Without the privilege it does its best.
pub(crate) fn be_punctual() {
    // SAFETY: both change attributes of this thread, no memory is involved.
    unsafe {
        libc::prctl(libc::PR_SET_TIMERSLACK, 1);
        libc::setpriority(libc::PRIO_PROCESS, 0, -20);
    }
}

/// Waits until one of the descriptors can be read, or for at most `timeout`. Which of them is not
/// told: reading never blocks.
pub(crate) fn wait(descriptors: &[RawFd], timeout: Option<Duration>) -> io::Result<()> {
    let mut polled: Vec<libc::pollfd> = descriptors
        .iter()
        .map(|fd| libc::pollfd {
            fd: *fd,
            events: libc::POLLIN,
            revents: 0,
        })
        .collect();
    let timeout = timeout.map(|timeout| libc::timespec {
        tv_sec: timeout.as_secs() as libc::time_t,
        tv_nsec: timeout.subsec_nanos().into(),
    });
    let timeout = timeout
        .as_ref()
        .map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the array has the given length, the timeout is null or valid, no signal mask.
    let ready = unsafe {
        libc::ppoll(
            polled.as_mut_ptr(),
            polled.len() as libc::nfds_t,
            timeout,
            std::ptr::null(),
        )
    };
    if ready < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    Ok(())
}
