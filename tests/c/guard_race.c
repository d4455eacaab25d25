/* The handler of SIGBUS alone. Files are cut while threads read and write them, and signals that are not ours must be
 * passed to their original handlers.
 *
 *   guard_race storm ROUNDS    threads fault, some in one range together, while another maps and unmaps intact ranges
 *   guard_race chain           every kind of previous handler, each in a process of its own
 *
 * If anything goes wrong, prints it, with exit status 1. */
#include "cuframes/guard.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#define SIZE 8448 /* like a control segment, not a multiple of the page size */
#define CHECK(condition)                                   \
    do {                                                   \
        if (!(condition)) {                                \
            printf("line %d: %s\n", __LINE__, #condition); \
            exit(1);                                       \
        }                                                  \
    } while (0)

static bool is_cut(const cf_guard *g) { return __atomic_load_n(&g->cut, __ATOMIC_SEQ_CST); }

static int make_file(void) {
    int fd = memfd_create("guard", 0);
    char page[SIZE];
    memset(page, 7, sizeof page);
    CHECK(fd >= 0 && write(fd, page, SIZE) == SIZE);
    return fd;
}

static volatile char *map_file(int fd, int protection) {
    void *at = mmap(NULL, SIZE, protection, MAP_SHARED, fd, 0);
    CHECK(at != MAP_FAILED);
    return at;
}

/* ---- storm ------------------------------------------------------------------------------------------------------- */

static pthread_barrier_t both;
static volatile char *together;
static long rounds;
static uint32_t stop; /* atomic */

/* Two threads touch the two ends of one range at the same time. */
static void *touch(void *end) {
    for (long i = 0; i < rounds; i++) {
        pthread_barrier_wait(&both);
        volatile char *at = together + (end ? SIZE - 1 : 0);
        if (end && i % 2) *at = 1;
        else CHECK(*at == 0);
        pthread_barrier_wait(&both);
    }
    return NULL;
}

static void *cut_together(void *nothing) {
    (void)nothing;
    for (long i = 0; i < rounds; i++) {
        int fd = make_file();
        together = map_file(fd, PROT_READ | PROT_WRITE);
        cf_guard *g = cf_guard_watch((void *)together, SIZE, PROT_READ | PROT_WRITE);
        CHECK(g && !is_cut(g) && ftruncate(fd, 0) == 0);
        pthread_barrier_wait(&both);
        pthread_barrier_wait(&both);
        CHECK(is_cut(g));
        cf_guard_unmap(g);
        close(fd);
    }
    return NULL;
}

/* Faults in one thread, also beyond the middle of a file that was cut to half. */
static void *cut_alone(void *nothing) {
    (void)nothing;
    while (!__atomic_load_n(&stop, __ATOMIC_SEQ_CST)) {
        int fd = make_file();
        volatile char *at = map_file(fd, PROT_READ);
        cf_guard *g = cf_guard_watch((void *)at, SIZE, PROT_READ);
        CHECK(g && ftruncate(fd, 4096) == 0 && at[0] == 7 && !is_cut(g));
        CHECK(at[5000] == 0 && is_cut(g) && at[0] == 0);
        CHECK(ftruncate(fd, SIZE) == 0 && pwrite(fd, "x", 1, 0) == 1 && at[0] == 0); /* it stays cut */
        cf_guard_unmap(g);
        close(fd);
    }
    return NULL;
}

static void storm(void) {
    pthread_t faulting[4], alone;
    CHECK(cf_guard_install() == 0 && cf_guard_install() == 0);
    pthread_barrier_init(&both, NULL, 3);
    pthread_create(&faulting[0], NULL, touch, NULL);
    pthread_create(&faulting[1], NULL, touch, &both);
    pthread_create(&faulting[2], NULL, cut_together, NULL);
    pthread_create(&alone, NULL, cut_alone, NULL);
    int fd = make_file();
    for (long i = 0; i < rounds; i++) {
        /* Map and unmap ranges of two sizes, so that the kernel puts them at addresses of earlier ones. */
        size_t size = i % 2 ? SIZE : 4096;
        void *at = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
        CHECK(at != MAP_FAILED);
        cf_guard *g = cf_guard_watch(at, size, PROT_READ);
        CHECK(g && ((volatile char *)at)[size - 1] == 7 && ((volatile char *)at)[0] == 7);
        CHECK(!is_cut(g));
        cf_guard_unmap(g);
    }
    for (int i = 0; i < 3; i++) pthread_join(faulting[i], NULL);
    __atomic_store_n(&stop, 1, __ATOMIC_SEQ_CST);
    pthread_join(alone, NULL);
    int nodes = 0;
    for (cf_guard *g = cf_guards; g; g = g->next, nodes++) CHECK(!g->taken);
    CHECK(nodes <= 3); /* the number of ranges at one time */
}

/* ---- chain ------------------------------------------------------------------------------------------------------- */

static volatile char *foreign; /* a mapping of a cut file, without a guard */
static volatile int plain_calls, full_calls;

/* Both repair the fault, like the handler of another library. */
static void mend(void) { mmap((void *)foreign, SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0); }

static void plain(int number) {
    sigset_t now;
    sigprocmask(SIG_SETMASK, NULL, &now);
    if (number == SIGBUS && sigismember(&now, SIGUSR1)) plain_calls++;
    mend();
}

static void full(int number, siginfo_t *info, void *context) {
    char here;
    stack_t stack;
    sigaltstack(NULL, &stack);
    bool there = &here > (char *)stack.ss_sp && &here < (char *)stack.ss_sp + stack.ss_size;
    if (number == SIGBUS && context && there && info->si_addr == (void *)foreign) full_calls++;
    mend();
}

static void ours_still_works(void) {
    int fd = make_file();
    volatile char *at = map_file(fd, PROT_READ);
    cf_guard *g = cf_guard_watch((void *)at, SIZE, PROT_READ);
    CHECK(ftruncate(fd, 0) == 0 && at[100] == 0 && is_cut(g));
    cf_guard_unmap(g);
    close(fd);
}

static void prepare(struct sigaction previous) {
    int fd = make_file();
    foreign = map_file(fd, PROT_READ);
    CHECK(ftruncate(fd, 0) == 0);
    CHECK(sigaction(SIGBUS, &previous, NULL) == 0 && cf_guard_install() == 0);
    ours_still_works();
}

static void default_fault(void) {
    prepare((struct sigaction){.sa_handler = SIG_DFL});
    (void)*foreign;
}

static void default_sent(void) {
    prepare((struct sigaction){.sa_handler = SIG_DFL});
    kill(getpid(), SIGBUS);
}

static void ignored_fault(void) {
    prepare((struct sigaction){.sa_handler = SIG_IGN});
    (void)*foreign;
}

static void ignored_sent(void) {
    prepare((struct sigaction){.sa_handler = SIG_IGN});
    kill(getpid(), SIGBUS);
    ours_still_works();
    exit(0);
}

static void plain_handler(void) {
    struct sigaction previous = {.sa_handler = plain};
    sigaddset(&previous.sa_mask, SIGUSR1);
    prepare(previous);
    CHECK(*foreign == 0 && plain_calls == 1);
    kill(getpid(), SIGBUS);
    CHECK(plain_calls == 2);
    ours_still_works();
    exit(0);
}

static void full_handler(void) {
    static char stack[65536];
    CHECK(sigaltstack(&(stack_t){.ss_sp = stack, .ss_size = sizeof stack}, NULL) == 0);
    prepare((struct sigaction){.sa_sigaction = full, .sa_flags = SA_SIGINFO});
    CHECK(*foreign == 0 && full_calls == 1);
    ours_still_works();
    exit(0);
}

/* If a later handler restored the default action, mappings made after that are guarded again. */
static void default_again(void) {
    prepare((struct sigaction){.sa_handler = plain});
    signal(SIGBUS, SIG_DFL);
    CHECK(cf_guard_install() == 0);
    ours_still_works();
    (void)*foreign;
}

/* A handler that was installed later is left alone. */
static void later_handler(void) {
    prepare((struct sigaction){.sa_handler = SIG_DFL});
    CHECK(sigaction(SIGBUS, &(struct sigaction){.sa_handler = plain}, NULL) == 0 && cf_guard_install() == 0);
    struct sigaction now;
    sigaction(SIGBUS, NULL, &now);
    CHECK(now.sa_handler == plain && *foreign == 0);
    exit(0);
}

static void child_of_fork(void) {
    prepare((struct sigaction){.sa_handler = SIG_DFL});
    int fd = make_file();
    volatile char *at = map_file(fd, PROT_READ | PROT_WRITE);
    cf_guard *g = cf_guard_watch((void *)at, SIZE, PROT_READ | PROT_WRITE);
    if (fork() == 0) {
        CHECK(ftruncate(fd, 0) == 0);
        at[0] = 3;
        CHECK(is_cut(g) && at[0] == 3);
        ours_still_works();
        exit(0);
    }
    int status;
    CHECK(wait(&status) > 0 && status == 0 && !is_cut(g)); /* ours is still the file; touching it cuts it */
    CHECK(at[0] == 0 && is_cut(g));
    exit(0);
}

static int failures;

static void expect(const char *name, void (*scenario)(void), int signal) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        alarm(20);
        scenario();
        exit(2); /* it should have ended by the signal */
    }
    int status = 0;
    waitpid(child, &status, 0);
    bool good =
        signal ? WIFSIGNALED(status) && WTERMSIG(status) == signal : WIFEXITED(status) && WEXITSTATUS(status) == 0;
    if (!good) printf("%s: wait status %#x\n", name, status), failures++;
}

int main(int count, char **arguments) {
    if (count == 3 && !strcmp(arguments[1], "storm")) {
        rounds = atol(arguments[2]);
        storm();
        return 0;
    }
    expect("default, fault", default_fault, SIGBUS);
    expect("default, sent", default_sent, SIGBUS);
    expect("ignored, fault", ignored_fault, SIGBUS);
    expect("ignored, sent", ignored_sent, 0);
    expect("plain handler", plain_handler, 0);
    expect("handler with siginfo", full_handler, 0);
    expect("default again", default_again, SIGBUS);
    expect("later handler", later_handler, 0);
    expect("child of fork", child_of_fork, 0);
    return failures != 0;
}
