/*
 * Runs a program and kills it, with SIGKILL, as it is about to make its N-th step.
 *
 *   kill_at N LOG files|network PROGRAM [ARG...]
 *
 * A step is a system call that changes what outlives the process, or what others see of it: a name made, moved or
 * removed, bytes written to a file or a disk, an address; with "network", also what is connected, sent and received.
 * Syncs and locks are none: a killed process has no unsynced writes to lose, since they are the kernel's already, and
 * no locks to leave. Steps are counted over all
 * threads and over the processes that run the same program (the helper that unwraps), not over others that it starts.
 * The N-th call is not made: everything until the (N-1)-th is done and nothing after it. With N = 0, or with fewer
 * than N steps, the program ends as it likes. LOG gets a line for each step.
 *
 * Exit status: the program's own, or 137 after the kill; 125 if it could not be watched.
 *
 * strace(1) cannot do it: it counts each call of each thread by itself.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

enum kind {
    CREATE, /* openat: a step with O_CREAT */
    NAME,   /* its first path is shown */
    NAME_AT,
    FILE_CALL,  /* a step on a file or disk; with "network" on a socket as well */
    SOCKET_CALL /* a step with "network" only */
};

static const struct call {
    int number;
    enum kind kind;
    const char *name;
} calls[] = {
#define CALL(name, kind) {SYS_##name, kind, #name}
    CALL(openat, CREATE),
#ifdef SYS_rename
    CALL(rename, NAME),
    CALL(unlink, NAME),
    CALL(mkdir, NAME),
    CALL(rmdir, NAME),
    CALL(link, NAME),
    CALL(symlink, NAME),
    CALL(chmod, NAME),
#endif
#ifdef SYS_renameat
    CALL(renameat, NAME_AT),
#endif
    CALL(renameat2, NAME_AT),
    CALL(unlinkat, NAME_AT),
    CALL(mkdirat, NAME_AT),
    CALL(linkat, NAME_AT),
    CALL(symlinkat, NAME_AT),
    CALL(fchmodat, NAME_AT),
    CALL(truncate, NAME),
    CALL(bind, FILE_CALL),
    CALL(listen, FILE_CALL),
    CALL(fchmod, FILE_CALL),
    CALL(ftruncate, FILE_CALL),
    CALL(fallocate, FILE_CALL),
    CALL(write, FILE_CALL),
    CALL(writev, FILE_CALL),
    CALL(pwrite64, FILE_CALL),
    CALL(pwritev, FILE_CALL),
    CALL(pwritev2, FILE_CALL),
    CALL(connect, SOCKET_CALL),
    CALL(sendto, SOCKET_CALL),
    CALL(sendmsg, SOCKET_CALL),
    CALL(recvfrom, SOCKET_CALL),
    CALL(recvmsg, SOCKET_CALL),
};
#define CALLS (sizeof calls / sizeof calls[0])

static void fail(const char *what) {
    perror(what);
    _exit(125);
}

/* Stops at the calls above and at no other, so that the program runs at nearly its own speed. */
static void install_filter(void) {
    struct sock_filter code[CALLS + 5];
    size_t at = 0;
#define LOAD(field) \
    (struct sock_filter) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (unsigned)offsetof(struct seccomp_data, field))
    code[at++] = LOAD(nr);
    for (size_t i = 1; i < CALLS; i++)
        code[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, calls[i].number,
                                                  (unsigned char)(CALLS - i + 3), 0);
    code[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_openat, 0, 2);
    code[at++] = LOAD(args[2]);
    code[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, O_CREAT, 1, 0);
    code[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    code[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE);
    struct sock_fprog program = {.len = (unsigned short)at, .filter = code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
        fail("seccomp");
}

static struct stat program;

/* Of another program (a shell, a client) no step counts. What cannot be looked at has shut itself off, as sealblk does. */
static int is_other_program(pid_t pid) {
    char path[64];
    struct stat found;
    snprintf(path, sizeof path, "/proc/%d/exe", pid);
    return stat(path, &found) == 0 && (found.st_dev != program.st_dev || found.st_ino != program.st_ino);
}

static int counts(pid_t pid, const struct call *call, unsigned long long descriptor, int network) {
    if (is_other_program(pid))
        return 0;
    if (call->kind == SOCKET_CALL)
        return network;
    if (call->kind != FILE_CALL || call->number == SYS_bind || call->number == SYS_listen)
        return 1;
    char path[64];
    struct stat found;
    snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, (int)descriptor);
    if (stat(path, &found))
        return 1;
    /* A file without a name goes with the process. Secret memory is one whose link count does not tell. */
    char name[64] = "";
    if (readlink(path, name, sizeof name - 1) > 0 && !strncmp(name, "/secretmem", 10))
        return 0;
    return (S_ISREG(found.st_mode) && found.st_nlink > 0) || S_ISDIR(found.st_mode) || S_ISBLK(found.st_mode) ||
           (network && S_ISSOCK(found.st_mode));
}

static void describe(FILE *log, pid_t pid, const struct call *call, const __uint64_t *args) {
    char text[512] = "", link[64];
    if (call->kind == FILE_CALL || call->kind == SOCKET_CALL) {
        snprintf(link, sizeof link, "/proc/%d/fd/%d", pid, (int)args[0]);
        if (readlink(link, text, sizeof text - 1) < 0)
            text[0] = 0;
    } else {
        void *from = (void *)(unsigned long)args[call->kind == NAME ? 0 : 1];
        struct iovec here = {text, sizeof text - 1}, there = {from, sizeof text - 1};
        if (process_vm_readv(pid, &here, 1, &there, 1, 0) < 0) {
            /* The page may end before the buffer does. */
            there.iov_len = here.iov_len = 4096 - (unsigned long)from % 4096 < sizeof text
                                               ? 4096 - (unsigned long)from % 4096
                                               : sizeof text - 1;
            if (process_vm_readv(pid, &here, 1, &there, 1, 0) < 0)
                text[0] = 0;
        }
    }
    fprintf(log, "%s %s\n", call->name, text);
    fflush(log);
}

#define MOST 4096
static pid_t seen[MOST];
static size_t seen_count;

static void note(pid_t pid) {
    for (size_t i = 0; i < seen_count; i++)
        if (seen[i] == pid)
            return;
    if (seen_count < MOST)
        seen[seen_count++] = pid;
}

/* Handles one stop; tells which signal goes through to the tracee. */
static int handle(pid_t pid, int status, int network, FILE *log, long *steps) {
    if (status >> 8 == (SIGTRAP | (PTRACE_EVENT_SECCOMP << 8))) {
        struct __ptrace_syscall_info info;
        if (ptrace(PTRACE_GET_SYSCALL_INFO, pid, sizeof info, &info) < 0)
            return 0;
        for (size_t i = 0; i < CALLS; i++)
            if ((__uint64_t)calls[i].number == info.seccomp.nr && counts(pid, &calls[i], info.seccomp.args[0], network)) {
                ++*steps;
                describe(log, pid, &calls[i], info.seccomp.args);
            }
        return 0;
    }
    if (status >> 16 || WSTOPSIG(status) == SIGSTOP)
        return 0;
    return WSTOPSIG(status);
}

int main(int argc, char **argv) {
    if (argc < 5)
        return 125;
    long last = atol(argv[1]), steps = 0;
    FILE *log = fopen(argv[2], "we");
    int network = !strcmp(argv[3], "network"), killed = 0, result = 125, status;
    if (!log || stat(argv[4], &program))
        fail(argv[4]);
    pid_t child = fork(), pid;
    if (child == 0) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        install_filter();
        execv(argv[4], argv + 4);
        fail("exec");
    }
    note(child);
    if (waitpid(child, &status, 0) != child ||
        ptrace(PTRACE_SETOPTIONS, child, 0,
               PTRACE_O_TRACESECCOMP | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE |
                   PTRACE_O_TRACEEXEC | PTRACE_O_EXITKILL))
        fail("ptrace");
    ptrace(PTRACE_CONT, child, 0, 0);
    /* Until nobody is left: whoever looks afterwards finds every lock free. */
    while ((pid = waitpid(-1, &status, __WALL)) > 0 || errno == EINTR) {
        if (pid == child && (WIFEXITED(status) || WIFSIGNALED(status)))
            result = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        if (pid <= 0 || !WIFSTOPPED(status))
            continue;
        note(pid);
        int signal = killed ? 0 : handle(pid, status, network, log, &steps);
        if (last > 0 && steps >= last) {
            killed = 1;
            for (size_t i = 0; i < seen_count; i++)
                kill(seen[i], SIGKILL);
        }
        ptrace(PTRACE_CONT, pid, 0, signal);
    }
    return killed ? 137 : result;
}
