// SPDX-License-Identifier: Apache-2.0
// Copy pages between two paged memories with bulk copies (cp.async.bulk, sm_90 and later).
//
// The pages of a call, one after the other in the `page` form, are one stream of 16-byte units. It
// is cut into chunks of one stage of shared memory; block b moves chunks b, b + blocks, ... In a
// stage lie the stream's own bytes: one warp fills it with a bulk copy per run of the source, the
// other empties it with a bulk copy per run of the destination. So each side moves its own longest
// runs, whatever the other's are, and pages smaller than a stage share one.
//
// NVRTC compiles this without an include path: PTX is inline. kernels/bulk.py packs `Arguments`;
// kernels/reference/bulk_ring.py runs the same schedule in Python.

typedef unsigned char u8;
typedef int i32;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

constexpr u32 UNIT_NBYTES = 16;
constexpr u32 LANES = 32;
constexpr u32 MAX_STAGES = 8;
constexpr u32 BARRIERS_NBYTES = 2 * MAX_STAGES * 8;  // before the ring, whose stages they guard
// Stores in flight while the next chunk's are issued: one chunk's, so that of six stages five fill.
constexpr u32 PENDING_STORES = 1;  // store_chunks hands back the stage of the chunk before

// One side of a copy. Run r of a page, counted in the `page` form, is (base, token, head) in that
// order; strides and bases are in units.
struct Side {
    const i64* bases;
    i64 page_stride;
    i64 token_stride;
    i64 head_stride;
    u32 run_units;
    u32 heads;
    u32 base_runs;  // runs of a page that belong to one base
    u32 page_runs;
    const void* slots;
    u32 slot_nbytes;  // 4 or 8
};

struct Arguments {
    Side source;
    Side destination;
    u64 total_units;
    u32 page_units;  // at most 2^30, so that sums of two such numbers fit
    u32 chunk_units;
    u32 num_chunks;
    u32 num_stages;  // more than PENDING_STORES
};

struct Chunk {
    u64 page;  // the first page in it, counted in the stream
    u32 first_unit;  // of that page
    u32 num_units;
};

// Contiguous units of one side: where they are, and where in the stage.
struct Piece {
    u64 address;
    u32 first_unit;
    u32 num_units;
};

// Where a warp is in the ring.
struct Position {
    u32 stage = 0;
    u32 parity = 0;  // of the stage's current use: 0, 1, 0, ...
};

__device__ Position next(Position at, u32 num_stages) {
    at.stage += 1;
    if (at.stage == num_stages) {
        at.stage = 0;
        at.parity ^= 1;
    }
    return at;
}

__device__ Chunk chunk_at(const Arguments& arguments, u32 index) {
    u64 first = u64(index) * arguments.chunk_units;
    u64 left = arguments.total_units - first;
    Chunk chunk;
    chunk.page = first / arguments.page_units;
    chunk.first_unit = u32(first - chunk.page * arguments.page_units);
    chunk.num_units = left < arguments.chunk_units ? u32(left) : arguments.chunk_units;
    return chunk;
}

__device__ i64 slot_of(const Side& side, u64 page) {
    if (side.slot_nbytes == sizeof(i32)) {
        return static_cast<const i32*>(side.slots)[page];
    }
    return static_cast<const i64*>(side.slots)[page];
}

__device__ u32 num_pieces(const Side& side, const Chunk& chunk) {
    u32 skipped = chunk.first_unit % side.run_units;
    return (skipped + chunk.num_units + side.run_units - 1) / side.run_units;
}

// Piece `index` of a chunk: its first one may begin and its last one end inside a run.
__device__ Piece piece_at(const Side& side, const Chunk& chunk, u32 index) {
    u32 run = chunk.first_unit / side.run_units + index;  // counted from the chunk's first page
    u32 skipped = chunk.first_unit % side.run_units;
    u32 begin = index * side.run_units;
    u32 end = begin + side.run_units - skipped;
    u32 inside = index == 0 ? skipped : 0;
    begin = index == 0 ? 0 : begin - skipped;

    i64 slot = slot_of(side, chunk.page + run / side.page_runs);
    u32 page_run = run % side.page_runs;
    u32 base = page_run / side.base_runs;
    u32 row = page_run % side.base_runs;
    i64 unit = side.bases[base] + slot * side.page_stride + inside;
    unit += i64(row / side.heads) * side.token_stride + i64(row % side.heads) * side.head_stride;

    Piece piece;
    piece.address = u64(unit) * UNIT_NBYTES;
    piece.first_unit = begin;
    piece.num_units = (end < chunk.num_units ? end : chunk.num_units) - begin;
    return piece;
}

// -- PTX: from here to the kernel, one instruction each ------------------------------------------

__device__ u32 shared_address(const void* pointer) {
    return u32(__cvta_generic_to_shared(pointer));
}

__device__ void init_barrier(u64* barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;"
                 ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// The barriers' initial state becomes visible to the unit that carries out bulk copies.
__device__ void publish_barriers() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ void arrive(u64* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];"
                 ::"r"(shared_address(barrier)) : "memory");
}

__device__ void arrive_expecting(u64* barrier, u32 nbytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                 ::"r"(shared_address(barrier)), "r"(nbytes) : "memory");
}

__device__ bool phase_is_over(u64* barrier, u32 parity) {
    u32 over;
    asm volatile("{\n"
                 ".reg .pred over;\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, over;\n"
                 "}"
                 : "=r"(over) : "r"(shared_address(barrier)), "r"(parity) : "memory");
    return over != 0;
}

// shared::cluster, because shared::cta as a destination is newer than NVRTC 12.8.
__device__ void bulk_load(u8* stage, u64 address, u32 nbytes, u64* barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
                 " [%0], [%1], %2, [%3];"
                 ::"r"(shared_address(stage)), "l"(address), "r"(nbytes),
                 "r"(shared_address(barrier)) : "memory");
}

__device__ void bulk_store(u64 address, const u8* stage, u32 nbytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;"
                 ::"l"(address), "r"(shared_address(stage)), "r"(nbytes) : "memory");
}

__device__ void commit_stores() {
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// This thread's stores, but for the last PENDING_STORES groups, have read their stages.
__device__ void wait_until_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING_STORES) : "memory");
}

// This thread's stores have written their destinations.
__device__ void wait_until_written() {
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

// -- the kernel ----------------------------------------------------------------------------------

__device__ void wait(u64* barrier, u32 parity) {
    while (!phase_is_over(barrier, parity)) {
    }
}

__device__ void load_chunks(const Arguments& arguments, u8* ring, u64* filled, u64* drained) {
    u32 lane = threadIdx.x % LANES;
    Position at;
    for (u32 index = blockIdx.x; index < arguments.num_chunks; index += gridDim.x) {
        Chunk chunk = chunk_at(arguments, index);
        u32 pieces = num_pieces(arguments.source, chunk);
        u8* stage = ring + at.stage * arguments.chunk_units * UNIT_NBYTES;
        // Of a fresh barrier, the phase before the first counts as over: the first round waits not.
        wait(&drained[at.stage], at.parity ^ 1);
        if (lane == 0) {
            arrive_expecting(&filled[at.stage], chunk.num_units * UNIT_NBYTES);
        }
        __syncwarp();
        for (u32 i = lane; i < pieces; i += LANES) {
            Piece piece = piece_at(arguments.source, chunk, i);
            bulk_load(stage + piece.first_unit * UNIT_NBYTES, piece.address,
                      piece.num_units * UNIT_NBYTES, &filled[at.stage]);
        }
        at = next(at, arguments.num_stages);
    }
}

// Bulk loads write a stage and bulk stores read it through the same proxy, so the wait for the
// loads orders them; ordinary accesses to a stage, which would need a fence, there are none.
__device__ void store_chunks(const Arguments& arguments, u8* ring, u64* filled, u64* drained) {
    u32 lane = threadIdx.x % LANES;
    Position at;
    u32 before = 0;  // the stage of the chunk before
    for (u32 index = blockIdx.x; index < arguments.num_chunks; index += gridDim.x) {
        Chunk chunk = chunk_at(arguments, index);
        u32 pieces = num_pieces(arguments.destination, chunk);
        u8* stage = ring + at.stage * arguments.chunk_units * UNIT_NBYTES;
        wait(&filled[at.stage], at.parity);
        for (u32 i = lane; i < pieces; i += LANES) {
            Piece piece = piece_at(arguments.destination, chunk, i);
            bulk_store(piece.address, stage + piece.first_unit * UNIT_NBYTES,
                       piece.num_units * UNIT_NBYTES);
        }
        commit_stores();  // every lane, one group per chunk, empty where it stored nothing
        wait_until_read();
        __syncwarp();  // the stores of every lane have read the chunk before
        if (lane == 0 && index != blockIdx.x) {
            arrive(&drained[before]);
        }
        before = at.stage;
        at = next(at, arguments.num_stages);
    }
    wait_until_written();
}

extern "C" __global__ void __launch_bounds__(2 * LANES, 1)
bulk_copy(const __grid_constant__ Arguments arguments) {
    extern __shared__ __align__(128) u8 shared[];
    u64* filled = reinterpret_cast<u64*>(shared);
    u64* drained = filled + MAX_STAGES;
    u8* ring = shared + BARRIERS_NBYTES;
    if (threadIdx.x == 0) {
        for (u32 stage = 0; stage < arguments.num_stages; stage += 1) {
            init_barrier(&filled[stage], 1);
            init_barrier(&drained[stage], 1);
        }
        publish_barriers();
    }
    __syncthreads();
    if (threadIdx.x < LANES) {
        load_chunks(arguments, ring, filled, drained);
    } else {
        store_chunks(arguments, ring, filled, drained);
    }
}
