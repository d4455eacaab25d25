/* The binary interface of DLPack (https://dmlc.github.io/dlpack/latest/c_api.html), as far as an exporter needs it:
 * the original structure and the versioned one of DLPack 1.x. The specification fixes their layouts. */
#ifndef CUFRAMES_DLPACK_H
#define CUFRAMES_DLPACK_H

#include "gnu.h"

#include <stdint.h>

typedef struct {
    int32_t device_type; /* 1 host, 2 CUDA */
    int32_t device_id;
} cf_dl_device;

typedef struct {
    void *data;
    cf_dl_device device;
    int32_t ndim;
    uint8_t type_code; /* 1 unsigned integer */
    uint8_t type_bits;
    uint16_t type_lanes;
    int64_t *shape;
    int64_t *strides; /* in elements */
    uint64_t byte_offset;
} cf_dl_tensor;

typedef struct cf_dl_managed {
    cf_dl_tensor tensor;
    void *context;
    void (*deleter)(struct cf_dl_managed *self);
} cf_dl_managed;

typedef struct cf_dl_versioned {
    uint32_t major;
    uint32_t minor;
    void *context;
    void (*deleter)(struct cf_dl_versioned *self);
    uint64_t flags; /* 1 read-only, 2 copied */
    cf_dl_tensor tensor;
} cf_dl_versioned;

/* One allocation for either structure, with room for the arrays that it points to. */
typedef struct {
    union {
        cf_dl_managed legacy;
        cf_dl_versioned versioned;
    } managed;
    int64_t shape[3];
    int64_t strides[3];
} cf_dl_export;

#endif
