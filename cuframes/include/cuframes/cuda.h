/* The part of the CUDA driver's binary interface that the hot path calls. Types and values are those of the driver API
 * (https://docs.nvidia.com/cuda/cuda-driver-api/). Building needs no part of CUDA: the functions are looked up at run
 * time with cuGetProcAddress. */
#ifndef CUFRAMES_CUDA_H
#define CUFRAMES_CUDA_H

#include "gnu.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    CF_CUDA_SUCCESS = 0,
    CF_CUDA_NOT_FOUND = 500,
    CF_CUDA_NOT_READY = 600,
    CF_CUDA_NOT_SUPPORTED = 801,
    CF_CUDA_CAPTURE_FIRST = 900, /* from here to CAPTURE_LAST: errors because a graph is being captured */
    CF_CUDA_CAPTURE_LAST = 908,
    CF_CUDA_CAPTURE_RELAXED = 2,
    CF_CUDA_EVENT_DISABLE_TIMING = 2,
    CF_CUDA_MEMORY_HOST = 1,
    CF_CUDA_MEMORY_DEVICE = 2,
    CF_CUDA_POINTER_DEVICE_ORDINAL = 9,
    CF_CUDA_STREAM_LEGACY = 1,
    CF_CUDA_STREAM_PER_THREAD = 2,
};

/* CUDA_MEMCPY2D_v2 */
typedef struct {
    size_t src_x_bytes, src_y;
    int src_type;
    const void *src_host;
    uintptr_t src_device;
    void *src_array;
    size_t src_pitch;
    size_t dst_x_bytes, dst_y;
    int dst_type;
    void *dst_host;
    uintptr_t dst_device;
    void *dst_array;
    size_t dst_pitch;
    size_t width_bytes, height;
} cf_cuda_memcpy2d;

typedef struct {
    int (*event_record)(void *event, void *stream);
    int (*stream_wait_event)(void *stream, void *event, unsigned flags);
    int (*event_query)(void *event);
    int (*event_synchronize)(void *event);
    int (*event_create)(void **event, unsigned flags);
    int (*event_destroy)(void *event);
    int (*ctx_record_event)(void *context, void *event); /* NULL before CUDA 12.5 */
    int (*ctx_get_current)(void **context);
    int (*ctx_set_current)(void *context);
    int (*ctx_push)(void *context);
    int (*ctx_pop)(void **context);
    int (*memcpy_2d_async)(const cf_cuda_memcpy2d *copy, void *stream);
    int (*stream_synchronize)(void *stream);
    int (*stream_is_capturing)(void *stream, int *status);
    int (*ctx_synchronize)(void);
    int (*exchange_capture_mode)(int *mode);
    int (*pointer_get_attribute)(void *data, int attribute, uintptr_t pointer);
    int (*get_error_name)(int error, const char **name);
    int (*get_error_string)(int error, const char **text);
} cf_cuda_calls;

/* ---- results ----------------------------------------------------------------------------------------------------- */

/* Whether the call failed because a graph is being captured. It will succeed when the capture is over. */
static inline bool cf_cuda_is_capture(int result) {
    return result >= CF_CUDA_CAPTURE_FIRST && result <= CF_CUDA_CAPTURE_LAST;
}

/* Whether the context is lost (illegal address, launch failure, ECC, driver shut down, ...). Nothing runs in it any
 * more, so nothing accesses memory through it either. */
static inline bool cf_cuda_is_lost(int result) {
    /* clang-format off */
    switch (result) {
        case 4: case 214: case 220: case 226: case 700: case 702: case 709: case 710: case 714: case 715: case 716:
        case 717: case 718: case 719: case 999: return true;
        default: return false;
    }
    /* clang-format on */
}

/* ---- calls in a context ------------------------------------------------------------------------------------------- *
 *
 * GRAPH CAPTURES
 *
 * While a thread captures a graph in the usual ("global") mode, many driver calls of every other thread fail. Worse,
 * such a call (cuEventQuery, for example) makes the capture itself fail. As a library we must not break captures of the
 * application, so
 *   - before something is queued on a stream, the stream is asked whether it is capturing; a capture is left untouched;
 *   - queries, waits and copies are made in the thread's relaxed mode, in which captures of others do not matter.
 * Two calls end every capture of the context in any mode: cuCtxRecordEvent and cuCtxSynchronize. They are used only for
 * consumers that do not tell their stream. */

typedef struct {
    const cf_cuda_calls *calls;
    void *context;
} cf_gpu;

/* Make the context current. On a thread without a context it stays current, as with the CUDA runtime. */
static inline bool cf_gpu_enter(const cf_gpu *gpu) {
    void *current = NULL;
    gpu->calls->ctx_get_current(&current);
    if (current == gpu->context) return false;
    if (current) return gpu->calls->ctx_push(gpu->context) == CF_CUDA_SUCCESS;
    gpu->calls->ctx_set_current(gpu->context);
    return false;
}

static inline void cf_gpu_leave(const cf_gpu *gpu, bool pushed) {
    void *popped;
    if (pushed) gpu->calls->ctx_pop(&popped);
}

static inline int cf_gpu_relax(const cf_gpu *gpu) {
    int mode = CF_CUDA_CAPTURE_RELAXED;
    gpu->calls->exchange_capture_mode(&mode);
    return mode;
}

static inline void cf_gpu_restore(const cf_gpu *gpu, int mode) { gpu->calls->exchange_capture_mode(&mode); }

/* 0, or the error if nothing can be queued on the stream now, because it (or, for a default stream, another stream) is
 * being captured. The caller has made the context current. */
static inline int cf_gpu_capturing(const cf_gpu *gpu, void *stream) {
    int status = 0;
    int result = gpu->calls->stream_is_capturing(stream, &status);
    return result ? result : status ? CF_CUDA_CAPTURE_FIRST : CF_CUDA_SUCCESS;
}

static inline int cf_gpu_usable(const cf_gpu *gpu, void *stream) {
    bool pushed = cf_gpu_enter(gpu);
    int result = cf_gpu_capturing(gpu, stream);
    cf_gpu_leave(gpu, pushed);
    return result;
}

/* Record an event behind all work that the stream has queued. */
static inline int cf_gpu_record(const cf_gpu *gpu, void *event, void *stream) {
    bool pushed = cf_gpu_enter(gpu);
    int result = cf_gpu_capturing(gpu, stream);
    if (!result) result = gpu->calls->event_record(event, stream);
    cf_gpu_leave(gpu, pushed);
    return result;
}

/* Record an event behind all work that the context has queued, even on streams destroyed since. CF_CUDA_NOT_SUPPORTED:
 * the driver (before CUDA 12.5) cannot do this; use cf_gpu_drain instead. */
static inline int cf_gpu_record_all(const cf_gpu *gpu, void *event) {
    if (!gpu->calls->ctx_record_event) return CF_CUDA_NOT_SUPPORTED;
    return gpu->calls->ctx_record_event(gpu->context, event);
}

/* Block the host until the context has finished all queued work. */
static inline int cf_gpu_drain(const cf_gpu *gpu) {
    bool pushed = cf_gpu_enter(gpu);
    int result = gpu->calls->ctx_synchronize();
    cf_gpu_leave(gpu, pushed);
    return result;
}

/* Make the stream wait for an event. */
static inline int cf_gpu_wait(const cf_gpu *gpu, void *stream, void *event) {
    bool pushed = cf_gpu_enter(gpu);
    int result = cf_gpu_capturing(gpu, stream);
    if (!result) result = gpu->calls->stream_wait_event(stream, event, 0);
    cf_gpu_leave(gpu, pushed);
    return result;
}

/* CF_CUDA_SUCCESS if the event's work is over or the event was never recorded; CF_CUDA_NOT_READY; or an error. */
static inline int cf_gpu_query(const cf_gpu *gpu, void *event) {
    int mode = cf_gpu_relax(gpu);
    int result = gpu->calls->event_query(event);
    cf_gpu_restore(gpu, mode);
    return result;
}

static inline int cf_gpu_synchronize(const cf_gpu *gpu, void *event) {
    int mode = cf_gpu_relax(gpu);
    int result = gpu->calls->event_synchronize(event);
    cf_gpu_restore(gpu, mode);
    return result;
}

static inline int cf_gpu_new_event(const cf_gpu *gpu, void **event) {
    *event = NULL;
    bool pushed = cf_gpu_enter(gpu);
    int result = gpu->calls->event_create(event, CF_CUDA_EVENT_DISABLE_TIMING);
    cf_gpu_leave(gpu, pushed);
    if (result) *event = NULL;
    return result;
}

#endif
