//! Descriptors a forked child must not keep.
//!
//! A child of `fork()` has every descriptor of its parent. As long as it holds a socket, the port
//! stays bound and the kernel queues datagrams nobody reads, although the parent has closed it.
//! Close-on-exec helps only children that execute something. So the descriptors are noted in a
//! table that a fork handler can walk: it is static, and closing is all that is done.

#[cfg(unix)]
pub use unix::close_inherited;

#[cfg(not(unix))]
pub use elsewhere::NotInherited;
#[cfg(unix)]
pub use unix::NotInherited;

#[cfg(unix)]
mod unix {
    use std::{
        os::fd::{AsRawFd, RawFd},
        sync::atomic::{AtomicI32, Ordering},
    };

    /// Room for the sockets of a few nodes and the largest pool of punching sockets. One that finds
    /// no room is inherited, as it would be without this table.
    const CAPACITY: usize = 1024;

    const FREE: RawFd = -1;

    static NOTED: [AtomicI32; CAPACITY] = [const { AtomicI32::new(FREE) }; CAPACITY];

    /// Notes a descriptor for [`close_inherited`]. To be dropped before the descriptor is closed:
    /// its number may mean something else a moment later.
    #[derive(Debug)]
    pub struct NotInherited(Option<&'static AtomicI32>);

    impl NotInherited {
        /// Notes the descriptor of `of`.
        pub fn new(of: &impl AsRawFd) -> Self {
            let fd = of.as_raw_fd();
            let take = |slot: &&AtomicI32| {
                slot.compare_exchange(FREE, fd, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok()
            };
            Self(NOTED.iter().find(take))
        }
    }

    impl Drop for NotInherited {
        fn drop(&mut self) {
            if let Some(slot) = self.0 {
                slot.store(FREE, Ordering::Release);
            }
        }
    }

    /// Closes the noted descriptors. For the child of a fork, which must not touch again what they
    /// belonged to. Async-signal-safe.
    pub fn close_inherited() {
        for slot in &NOTED {
            let fd = slot.swap(FREE, Ordering::AcqRel);
            if fd != FREE {
                // SAFETY: the descriptor was open when it was noted, and is noted no longer when
                // its owner closes it. In the child nobody else will use or close it.
                unsafe { libc::close(fd) };
            }
        }
    }
}

#[cfg(not(unix))]
mod elsewhere {
    /// Nothing is inherited without `fork()`.
    #[derive(Debug)]
    pub struct NotInherited;

    impl NotInherited {
        /// Does nothing.
        pub fn new<T>(_of: &T) -> Self {
            Self
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::{net::UdpSocket, os::fd::AsRawFd};

    use super::*;

    #[test]
    fn a_child_has_closed_what_was_noted_and_nothing_else() {
        let bind = || UdpSocket::bind("127.0.0.1:0").expect("loopback can be bound");
        let (noted, forgotten, other) = (bind(), bind(), bind());
        let _noted = NotInherited::new(&noted);
        drop(NotInherited::new(&forgotten));
        // SAFETY: the child calls only functions that are async-signal-safe.
        let child = unsafe { libc::fork() };
        if child == 0 {
            close_inherited();
            // SAFETY: fcntl is given descriptors, open or not; _exit does not return.
            unsafe {
                let is_open =
                    |socket: &UdpSocket| libc::fcntl(socket.as_raw_fd(), libc::F_GETFD) >= 0;
                let right = !is_open(&noted) && is_open(&forgotten) && is_open(&other);
                libc::_exit(i32::from(!right));
            }
        }
        let mut status = -1;
        // SAFETY: `status` is a live c_int.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert_eq!(status, 0);
        assert!(noted.local_addr().is_ok(), "the parent keeps its own");
    }
}
