//! What wakes an event loop: a descriptor it can watch, where the platform has one.

#[cfg(target_os = "linux")]
pub(crate) use eventfd::Bell;
#[cfg(not(unix))]
pub(crate) use silent::Bell;
#[cfg(all(unix, not(target_os = "linux")))]
pub(crate) use socketpair::Bell;

/// One descriptor, one counter: the cheapest doorbell there is.
#[cfg(target_os = "linux")]
mod eventfd {
    use std::fs::File;
    use std::io::{self, Read, Write};
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

    use anyreach_net::inherit::NotInherited;

    pub(crate) struct Bell {
        // Before the descriptor, so that it is dropped first.
        _not_inherited: NotInherited,
        counter: File,
    }

    impl Bell {
        pub(crate) fn new() -> io::Result<Self> {
            // SAFETY: no pointers involved; the result is checked before it is used.
            let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: a fresh descriptor nobody else owns.
            let counter = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
            Ok(Self {
                _not_inherited: NotInherited::new(&counter),
                counter,
            })
        }

        pub(crate) fn fileno(&self) -> i32 {
            self.counter.as_raw_fd()
        }

        /// Makes the descriptor readable. A full counter is readable already, so that error
        /// means success.
        pub(crate) fn ring(&self) {
            let _ = (&self.counter).write(&1u64.to_ne_bytes());
        }

        /// Makes the descriptor unreadable; it may have been so before.
        pub(crate) fn silence(&self) {
            let _ = (&self.counter).read(&mut [0; 8]);
        }
    }
}

/// The same with two descriptors, for the other Unix systems.
#[cfg(all(unix, not(target_os = "linux")))]
mod socketpair {
    use std::io::{self, Read, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use anyreach_net::inherit::NotInherited;

    pub(crate) struct Bell {
        // Before the descriptors, so that they are dropped first.
        _not_inherited: [NotInherited; 2],
        read: UnixStream,
        write: UnixStream,
    }

    impl Bell {
        pub(crate) fn new() -> io::Result<Self> {
            let (read, write) = UnixStream::pair()?;
            read.set_nonblocking(true)?;
            write.set_nonblocking(true)?;
            Ok(Self {
                _not_inherited: [NotInherited::new(&read), NotInherited::new(&write)],
                read,
                write,
            })
        }

        pub(crate) fn fileno(&self) -> i32 {
            self.read.as_raw_fd()
        }

        /// Makes the descriptor readable. A full buffer is readable already, so that error
        /// means success.
        pub(crate) fn ring(&self) {
            let _ = (&self.write).write(&[1]);
        }

        /// Makes the descriptor unreadable; it may have been so before.
        pub(crate) fn silence(&self) {
            let mut sink = [0; 64];
            while matches!((&self.read).read(&mut sink), Ok(n) if n == sink.len()) {}
        }
    }
}

/// Platforms whose event loops watch no descriptors: a helper thread waits instead.
#[cfg(not(unix))]
mod silent {
    use std::io;

    pub(crate) struct Bell;

    impl Bell {
        pub(crate) fn new() -> io::Result<Self> {
            Ok(Self)
        }

        pub(crate) fn fileno(&self) -> i32 {
            -1
        }

        pub(crate) fn ring(&self) {}

        pub(crate) fn silence(&self) {}
    }
}
