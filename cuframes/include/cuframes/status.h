/* Status codes that the rings' functions return, and constants for waiting. check() in status.pyx turns a status into
 * an exception. */
#ifndef CUFRAMES_STATUS_H
#define CUFRAMES_STATUS_H

enum {
    CF_OK = 0,
    CF_EMPTY = -1,       /* nothing new to take */
    CF_HELD = -2,        /* every slot is held by a reader */
    CF_TIMED_OUT = -3,   /* the caller's deadline has passed */
    CF_AGAIN = -4,       /* a slice of waiting is over: look at signals, then call again */
    CF_SOCKET = -5,      /* the publisher's socket has a message, or hung up */
    CF_ENDED = -6,       /* the publisher is gone, and everything valid was taken */
    CF_TOO_MANY = -7,    /* the subscriber holds max_held frames */
    CF_OVERWRITTEN = -8, /* the frame changed while it was read: discard what was read */
    CF_BUSY = -9,        /* another thread is writing, or taking, at this end */
    CF_CLOSED = -10,     /* this end was closed */
    CF_NO_BIT = -11,     /* all subscribers there can be are active */
    CF_OVERSIZED = -12,  /* a packet larger than the ring's limit */
    CF_OVERRUN = -13,    /* packets were overwritten before they were read */
    CF_NO_WAITV = -15,   /* the kernel cannot wait for several futexes */
    CF_WARM_UP = -16,    /* no frame yet, but one is due or may be: warm up, then call again */
    CF_CORRUPT = -14,    /* the segment contains values that no writer would store */
    CF_CUT = -17,        /* the segment's file is shorter than its mapping */
};

#endif
