/* The part of the CUDA driver's binary interface that the hot path calls. Types and values are those of the driver API
 * (https://docs.nvidia.com/cuda/cuda-driver-api/); nothing of CUDA is needed to build. The functions are looked up at run
 * time with cuGetProcAddress. */
#ifndef CUFRAMES_CUDA_H
#define CUFRAMES_CUDA_H

#include <stddef.h>
#include <stdint.h>

enum {
    CF_CUDA_SUCCESS = 0,
    CF_CUDA_NOT_FOUND = 500,
    CF_CUDA_NOT_READY = 600,
    CF_CUDA_NOT_SUPPORTED = 801,
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
    int (*pointer_get_attribute)(void *data, int attribute, uintptr_t pointer);
    int (*get_error_name)(int error, const char **name);
    int (*get_error_string)(int error, const char **text);
} cf_cuda_calls;

#endif
