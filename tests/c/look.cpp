// A C++ program that looks at a ring without joining it: the newest frame's number, from the control segment alone.
//
//   look SEGMENT        prints sequence number, frame number and timestamp
#include <cstdio>

#include "cuframes/frame_ring.h"

#include <sys/mman.h>

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    int fd = open(argv[1], O_RDONLY);
    void *segment = mmap(nullptr, sizeof(cf_frame_header), PROT_READ, MAP_SHARED, fd, 0);
    if (segment == MAP_FAILED) return 2;
    auto *header = static_cast<cf_frame_header *>(segment);
    if (cf_load_acquire_u32(&header->magic) != CF_FRAME_MAGIC || header->proto_version != CF_PROTOCOL_V3) return 3;
    cf_reader reader{};
    reader.shared = header;
    reader.ring_size = static_cast<uint32_t>(header->ring_size);
    uint64_t seq = cf_reader_pick(&reader);
    if (!seq) return 4;
    const cf_slot &slot = header->slots[seq % reader.ring_size];
    uint64_t number = cf_load_relaxed(&slot.frame_no);
    int64_t pts_ns = cf_load_relaxed_i64(&slot.pts_ns);
    auto slot_index = static_cast<uint32_t>(seq % reader.ring_size);
    if (!cf_reader_valid(&reader, slot_index, seq)) return 5;
    std::printf("%llu %llu %lld\n", static_cast<unsigned long long>(seq), static_cast<unsigned long long>(number),
                static_cast<long long>(pts_ns));
    return 0;
}
