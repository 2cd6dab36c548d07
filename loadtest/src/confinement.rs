//! What a program that is to be started may not do: limits, and system calls that the kernel refuses it.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Lets it have this many descriptors at most.
pub fn limit_descriptors(command: &mut Command, count: u64) {
    limit(command, libc::RLIMIT_NOFILE, count);
}

/// Lets it lock this many bytes of memory at most.
pub fn limit_locked_memory(command: &mut Command, bytes: u64) {
    limit(command, libc::RLIMIT_MEMLOCK, bytes);
}

fn limit(command: &mut Command, resource: libc::__rlimit_resource_t, most: u64) {
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: setrlimit is a plain system call, and the limit is the closure's own.
    unsafe {
        command.pre_exec(move || match libc::setrlimit(resource, &raw const limit) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
}

/// System calls, by their numbers, and the error with which they fail.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// The calls' numbers on this architecture.
    pub calls: Vec<libc::c_long>,
    /// The error, such as `EPERM`.
    pub errno: i32,
}

/// Has the kernel refuse it system calls, as a container runtime's seccomp profile does.
///
/// # Panics
/// Where the numbers are none.
pub fn refuse(command: &mut Command, refusal: &Refusal) {
    let filter = filter(refusal);
    // SAFETY: prctl is a plain system call, and the kernel copies the program, which is the closure's own.
    unsafe {
        command.pre_exec(move || {
            let program = libc::sock_fprog {
                len: libc::c_ushort::try_from(filter.len()).expect("a few instructions"),
                filter: filter.as_ptr().cast_mut(),
            };
            let refused = libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) != 0;
            if refused { Err(io::Error::last_os_error()) } else { Ok(()) }
        });
    }
}

/// Compares the call's number, which `seccomp_data` begins with, with each, and jumps to the last instruction where it is
/// one of them.
fn filter(refusal: &Refusal) -> Vec<libc::sock_filter> {
    let instruction = |code: u32, jt: usize, k: u32| libc::sock_filter {
        code: code.try_into().expect("codes have 16 bits"),
        jt: jt.try_into().expect("a few instructions"),
        jf: 0,
        k,
    };
    let calls = &refusal.calls;
    let errno = u32::try_from(refusal.errno).expect("errors are positive");
    let mut filter = vec![instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0)];
    filter.extend(calls.iter().enumerate().map(|(at, call)| {
        let call = u32::try_from(*call).expect("a system call's number");
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, calls.len() - at, call)
    }));
    filter.push(instruction(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW));
    filter.push(instruction(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ERRNO | errno));
    filter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_is_refused_fails_with_the_error_and_others_do_not() {
        let run = |calls: &[libc::c_long]| {
            let mut command = Command::new("sh");
            command.args(["-c", "umask 022 && mkdir /"]);
            refuse(&mut command, &Refusal { calls: calls.to_vec(), errno: libc::EDOM });
            let output = command.output().unwrap();
            assert!(!output.status.success());
            String::from_utf8_lossy(&output.stderr).into_owned()
        };
        assert!(run(&[libc::SYS_io_uring_setup]).contains("File exists"));
        assert!(run(&[libc::SYS_io_uring_setup, libc::SYS_mkdir, libc::SYS_mkdirat]).contains("out of domain"));
    }
}
