// SPDX-License-Identifier: Apache-2.0
// kernels/csrc/bulk_copy.cu on the CPU: the source as it is, but for its PTX, which is emulated here
// with a thread per lane. Loads end in random order while someone waits for them; stores read their
// stage as late as the source lets them, so a stage that is handed back too early shows as wrong
// bytes. test_bulk.py compiles this with SOURCE_BEFORE_PTX and SOURCE_AFTER_PTX.
#include <barrier>
#include <chrono>
#include <cstring>
#include <map>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#define __device__ static
#define __global__
#define __shared__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(nbytes) __attribute__((aligned(nbytes)))

#include SOURCE_BEFORE_PTX

struct Place {
    u32 x;
};
static thread_local Place threadIdx;
static Place blockIdx, gridDim;

struct Phase {
    u32 over = 0;
    u32 arrivals = 0;
    i64 nbytes = 0;
};
struct Load {
    u8* stage;
    u64 address;
    u32 nbytes;
    u64* barrier;
};
struct Store {
    u64 address;
    const u8* stage;
    u32 nbytes;
};

static std::mutex mutex;
static std::mt19937 random_numbers;
static std::map<u64*, Phase> phases;
static std::vector<Load> loads;
static std::chrono::steady_clock::time_point deadline;
static bool is_stuck = false;  // someone waited past the deadline; from then on nobody waits
static thread_local std::vector<std::vector<Store>> groups(1);  // the last one is not committed
static thread_local size_t groups_done = 0;

static std::barrier<> block_barrier(2 * LANES);
static std::barrier<> warp_barriers[2] = {std::barrier<>(LANES), std::barrier<>(LANES)};

static void __syncthreads() { block_barrier.arrive_and_wait(); }
static void __syncwarp() { warp_barriers[threadIdx.x / LANES].arrive_and_wait(); }

static void settle(Phase& phase) {
    if (phase.arrivals == 0 && phase.nbytes == 0) {
        phase.over += 1;
        phase.arrivals = 1;
    }
}

static void end_one_load() {
    if (loads.empty() || random_numbers() % 2) {
        return;
    }
    size_t index = random_numbers() % loads.size();
    Load load = loads[index];
    loads.erase(loads.begin() + index);
    memcpy(load.stage, reinterpret_cast<void*>(load.address), load.nbytes);
    Phase& phase = phases.at(load.barrier);
    phase.nbytes -= load.nbytes;
    settle(phase);
}

static void init_barrier(u64* barrier, u32 arrivals) { phases[barrier] = {0, arrivals, 0}; }
static void publish_barriers() {}

static void arrive_expecting(u64* barrier, u32 nbytes) {
    std::lock_guard guard(mutex);
    Phase& phase = phases.at(barrier);
    phase.arrivals -= 1;
    phase.nbytes += nbytes;
    settle(phase);
}
static void arrive(u64* barrier) { arrive_expecting(barrier, 0); }

static bool phase_is_over(u64* barrier, u32 parity) {
    {
        std::lock_guard guard(mutex);
        end_one_load();
        is_stuck |= std::chrono::steady_clock::now() > deadline;
        if (is_stuck || phases.at(barrier).over % 2 != parity) {
            return true;
        }
    }
    std::this_thread::yield();
    return false;
}

static void bulk_load(u8* stage, u64 address, u32 nbytes, u64* barrier) {
    std::lock_guard guard(mutex);
    loads.push_back({stage, address, nbytes, barrier});
}
static void bulk_store(u64 address, const u8* stage, u32 nbytes) {
    groups.back().push_back({address, stage, nbytes});
}
static void commit_stores() { groups.emplace_back(); }

static void wait_for_all_but(size_t pending) {
    std::lock_guard guard(mutex);
    for (; groups_done + 1 + pending < groups.size(); groups_done += 1) {
        for (const Store& store : groups[groups_done]) {
            memcpy(reinterpret_cast<void*>(store.address), store.stage, store.nbytes);
        }
    }
}
static void wait_until_read() { wait_for_all_but(PENDING_STORES); }
static void wait_until_written() { wait_for_all_but(0); }

#include SOURCE_AFTER_PTX

u8 shared[1 << 16] __align__(128);

// Returns whether every wait ended.
extern "C" bool run(const Arguments* arguments, u32 num_blocks, u32 seed) {
    random_numbers.seed(seed);
    deadline = std::chrono::steady_clock::now() + std::chrono::seconds(5);
    is_stuck = false;
    gridDim.x = num_blocks;
    for (blockIdx.x = 0; blockIdx.x < num_blocks; blockIdx.x += 1) {
        phases.clear();
        loads.clear();
        std::vector<std::thread> threads;
        for (u32 x = 0; x < 2 * LANES; x += 1) {
            threads.emplace_back([=] {
                threadIdx.x = x;
                bulk_copy(*arguments);
            });
        }
        for (std::thread& thread : threads) {
            thread.join();
        }
    }
    return !is_stuck;
}

extern "C" u32 pieces(const Side* side, const Arguments* arguments, u32 index, Piece* out) {
    Chunk chunk = chunk_at(*arguments, index);
    u32 count = num_pieces(*side, chunk);
    for (u32 i = 0; i < count; i += 1) {
        out[i] = piece_at(*side, chunk, i);
    }
    return count;
}
