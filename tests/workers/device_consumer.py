"""Takes device frames, copies them to the host and checks that each is one colour: that of its dense number."""

import argparse
import json
import sys

import cuframes

parser = argparse.ArgumentParser()
parser.add_argument("key")
parser.add_argument("--mode", default="ordered")
parser.add_argument("--hold", action="store_true", help="keep the first frame until a line comes in, then look at it")
parser.add_argument("--write", action="store_true", help="write to the first frame through its mapping, and say so")
parser.add_argument("--device", type=int, default=None)
options = parser.parse_args()


def whole(frame):
    return bool((frame.copy_to_host() == frame.frame_no % 251).all())


with cuframes.Subscriber(options.key, mode=options.mode, device=options.device) as subscriber:
    print(json.dumps("ready"), flush=True)
    torn = received = 0
    first = None
    for frame in subscriber:
        torn += not whole(frame)
        received += 1
        if options.hold and first is None:
            first = frame
            print(json.dumps("holding"), flush=True)
            sys.stdin.readline()
            print(json.dumps(whole(first)), flush=True)
        if options.write:
            from cuda.bindings import driver

            view = frame.planes[0].__cuda_array_interface__
            print(json.dumps({"read_only": view["data"][1], "device": frame.device}), flush=True)
            address = view["data"][0]
            result = driver.cuMemsetD8(address, 99, 64)[0] if hasattr(driver, "cuMemsetD8") else None
            print(json.dumps(str(result)), flush=True)
            break
    stats = subscriber.stats()
    print(json.dumps({"torn": torn, "received": received, "lost": stats.lost, "skipped": stats.skipped}))
