"""Fills each frame with its dense number by a slow kernel on a stream of its own, and never waits for the GPU."""

import json
import sys

import cupy

import cuframes

key, memory, count, delay_us = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
FILL = cupy.RawKernel(
    r"""
extern "C" __global__ void fill(unsigned *words, int count, unsigned number, long long delay_ns) {
    unsigned long long start, now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
    do asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now)); while (now - start < delay_ns);
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) words[i] = number;
}
""",
    "fill",
)
stream = cupy.cuda.Stream(non_blocking=True)
with stream, cuframes.Publisher(key, 1920, 1080, "nv12", memory=memory) as publisher:
    assert publisher.memory == memory
    print(json.dumps("ready"), flush=True)
    if sys.stdin.readline() == "":
        sys.exit()
    dropped = number = 0
    while number < count:
        try:
            with publisher.acquire(stream=stream) as frame:
                words = cupy.asarray(frame).reshape(-1).view(cupy.uint32)
                FILL((64,), (256,), (words, words.size, cupy.uint32(number + 1), cupy.int64(delay_us * 1000)))
            number += 1
        except cuframes.FrameDropped:
            dropped += 1
        if number % 16 == 0:
            stream.synchronize()  # a decoder's pace: not thousands of frames ahead of the GPU
    stream.synchronize()
    sys.stdin.readline()
print(json.dumps({"published": number, "dropped": dropped}))
