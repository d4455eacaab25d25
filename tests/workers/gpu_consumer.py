"""Verifies every frame by a kernel on a stream of its own; releases it at once, with the kernel still to run."""

import argparse
import json

import cupy

import cuframes

parser = argparse.ArgumentParser()
parser.add_argument("key")
parser.add_argument("--mode", default="ordered")
parser.add_argument("--delay-us", type=int, default=0, help="how long the kernel waits before it looks")
parser.add_argument("--by", default="dlpack", help="dlpack, interface or torch")
options = parser.parse_args()
VERIFY = cupy.RawKernel(
    r"""
extern "C" __global__ void verify(const unsigned *words, int count, unsigned number, long long delay_ns,
                                  unsigned long long *wrong) {
    unsigned long long start, now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
    do asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now)); while (now - start < delay_ns);
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x)
        if (words[i] != number) atomicAdd(wrong, 1ULL);
}
""",
    "verify",
)
wrong = cupy.zeros(4096, cupy.uint64)
cupy.cuda.Device().synchronize()
stream = cupy.cuda.Stream(non_blocking=True)
if options.by == "torch":
    import torch

    torch_stream = torch.cuda.ExternalStream(stream.ptr)
    torch.cuda.set_stream(torch_stream)
with stream, cuframes.Subscriber(options.key, mode=options.mode, stream=stream) as subscriber:
    print(json.dumps("ready"), flush=True)
    numbers = []
    for frame in subscriber:
        if options.by == "torch":
            view = cupy.asarray(torch.from_dlpack(frame))
        elif options.by == "interface":
            view = cupy.asarray(frame)
        else:
            view = cupy.from_dlpack(frame)
        words = view.reshape(-1).view(cupy.uint32)
        VERIFY(
            (64,), (256,),
            (words, words.size, cupy.uint32(frame.frame_no), cupy.int64(options.delay_us * 1000),
             wrong[len(numbers) % 4096 :]),
        )  # fmt: skip
        numbers.append(frame.frame_no)
        del view, words
        frame.release()
    stats = subscriber.stats()
    stream.synchronize()
    print(json.dumps({
        "received": stats.received, "lost": stats.lost, "skipped": stats.skipped,
        "torn": int((wrong != 0).sum()), "last": numbers[-1] if numbers else 0,
    }))  # fmt: skip
