// The running machine: clusters of CTAs of warps of lane groups. One Cluster is one host task; nothing in it is shared
// with other tasks except the caller's buffers, the module's variables and the (read-only) linked code.
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <unordered_map>

#include "findings.h"
#include "tensor/gemm.h"
#include "footprint.h"
#include "program.h"
#include "shadow_global.h"
#include "trace.h"

namespace tkpy::emulator {

struct Dim3 {
  u32 x = 1, y = 1, z = 1;
  u64 count() const { return u64{x} * y * z; }
};

// A range of host memory that the kernel may touch.
struct Region {
  u64 lo, hi;
  bool writable;
  DeviceHeap* heap = nullptr;  // the memory that malloc gives out
};

struct InstrCount {
  u64 issues = 0, lanes = 0;
  u64 shared_requests = 0, shared_wavefronts = 0, bank_conflicts = 0;  // conflicts: wavefronts beyond one a pass
  u64 global_requests = 0, global_sectors = 0;
  u64 global_bytes = 0, shared_bytes = 0, local_bytes = 0;  // a copy counts where it reads and where it writes
  u64 flops = 0;
  void add(const InstrCount& o);
};

struct SiteKey {
  u32 function, op;
};

// Code of one function with this kernel's shared addresses filled in.
struct LinkedFunction {
  const Function* function = nullptr;
  std::vector<Op> ops;
  std::vector<u32, std::allocator<u32>> constant_rows;  // raw; `constants` is its first aligned byte
  u8* constants = nullptr;
  u32 first_counter = 0;
  u32 first_site = 0;
};

struct Linked {
  const Module* module = nullptr;
  u32 kernel = 0;
  SiteKey site(u32 index) const;          // of a number that site_index() gave; 0 is none
  u32 site_index(const SiteKey& key) const { return functions[key.function].first_site + key.op + 1; }
  std::vector<LinkedFunction> functions;  // parallel to Module::functions; unreachable ones are empty
  std::vector<u64> shared_address;        // by symbol
  u32 static_shared = 0;                  // bytes of static shared memory, from kSharedBase
  u32 dynamic_base = 0;                   // 32-bit address of dynamic shared memory
  u32 counters = 0;
  bool talks_across_ctas = false;
  u32 most_registers = 0;                 // the largest operand of a setmaxnreg
};

struct LaunchConfig {
  u32 kernel = 0;
  Dim3 grid, block, cluster;
  u32 dynamic_shared = 0;
  std::vector<u8> params;
  std::vector<Region> regions;
  u64 seed = 0;
  u32 checks = 0;       // bit per Check
  bool counters = true;
  u64 budget = 0;       // warp instructions per CTA; 0: the default
  u32 threads = 1;      // host threads
  u32 registers = 0;    // a thread's at launch, for setmaxnreg; 0: what ptxas would derive
  u32 trace_slots = 0;  // clusters that run at once on the machine that a trace is for; 0: no trace
  bool trace_warm = false;  // what the launch may touch is in L2 when it starts
  bool rough = false;       // arithmetic that the ISA leaves open is no better than an H100's: docs/emulator.md
  tensor::Sums sums() const { return rough ? tensor::Sums::hopper : tensor::Sums::fused; }
  std::function<void()> poll;  // called now and then by the thread that launches; what it throws ends the launch
};

struct LaunchResult {
  std::vector<Finding> findings;
  bool fatal = false;
  std::string output;                 // printf
  std::vector<std::vector<InstrCount>> counters;  // [function][instr]
  u64 warp_instructions = 0, thread_instructions = 0;
  u64 sectors_read = 0, sectors_written = 0;  // of global memory, distinct ones; counted with counters
  TraceResult trace;
};

// What the checks know of one watched register of one call (exec_watch.cpp).
struct RegisterState {
  u32 undefined = 0;       // lanes that have not written it
  u32 touched = 0;         // 1 + number of wgmma.fence before its last use by another instruction than wgmma; 0: none
  u32 touched_by = 0;      // Op
  u32 fenced = 0;          // 1 + number of wgmma.fence before the last wgmma that uses it
  u64 wgmma = 0;           // number of that wgmma, from 1; 0: none
  u32 wgmma_op = 0;
  bool accumulates = false;
};

struct Frame {
  const LinkedFunction* fn = nullptr;
  Frame* parent = nullptr;
  u32 return_pc = 0;        // op after the call, in the parent
  const CallSite* site = nullptr;
  u32 depth = 0;
  u32 live = 0;             // lanes still inside
  std::array<u32, kLanes> extra_bytes{};  // alloca, above the slice
  u32 local_base = 0;       // offset of this call's slice in each lane's local memory
  std::vector<u32> storage;
  u8* rows = nullptr;
  std::vector<u32> preds;
  std::vector<RegisterState> watched;  // parallel to Function::watched
};

struct Wait {
  enum Kind : u8 { none, warp_sync, warp_barrier, barrier, cluster_barrier, mbarrier, cp_async, bulk, wgmma, registers } kind = none;
  u32 id = 0;       // barrier id, member mask or group count
  u64 phase = 0;    // generation waited for
  u64 address = 0;
  bool read_only = false;
  bool operator==(const Wait&) const = default;
};

struct Group {
  Frame* frame = nullptr;
  u32 pc = 0;
  u32 mask = 0;
  Wait wait;
  bool resumed = false;   // woken at `pc`, whose first half has been done
  bool timed_out = false;
  bool yielded = false;   // spinning: others first
};

struct Cta;
struct Cluster;

// Asynchronous operations issued by a warp's lanes: those not yet committed, and committed groups in order.
struct AsyncGroups {
  struct Chain {
    u32 lanes, component, time;  // bulk: component of the sources; the next one is that of the targets
  };
  struct Entry {
    u32 lanes;
    std::vector<u64> agents;
    std::vector<Chain> chains;
    bool read = false;  // a wait for the sources has covered it
  };
  std::vector<Entry> open, groups;
};

struct Warp {
  Cta* cta = nullptr;
  u32 index = 0;          // within the CTA
  u32 id = 0;             // within the cluster: its component of the clocks
  u32 alive = 0;
  std::vector<Group> groups;
  std::vector<std::unique_ptr<Frame>> frames;
  std::vector<std::unique_ptr<Frame>> spare;
  std::vector<u8> local, local_init;
  u32 local_stride = 0;
  WarpOrder order;
  std::array<u64, kLanes> cluster_arrivals{};  // phase + 1 that each lane last arrived at
  u64 executed = 0;
  u32 region_hint = 0;
  AsyncGroups async[2];             // of cp.async and of bulk copies
  u64 wgmma_issued = 0;
  u64 wgmma_waited = 0;             // so many of them are covered by a wait
  SiteKey wgmma_last{};             // the last one issued
  u32 wgmma_fences = 0, wgmma_commits = 0;
  u32 registers = 0;                // a thread's
  u32 setmaxnregs = 0;              // executed so far
  u32 setmaxnreg_time = 0;          // own time of the last
  u32 setmaxnreg_before = 0;        // and of the one before it
  std::vector<u64> wgmma_groups;    // for each committed group, how many had been issued
};

struct SharedMemory {
  std::vector<u8> data;             // from kSharedBase
  std::vector<u8> init;             // per byte
  std::vector<Cell> cells;          // of 4 bytes
  ReadSets read_sets;
};

struct Barrier {
  u32 expected = 0;     // threads; 0: every warp of the CTA that has not exited
  u32 arrived = 0;      // threads
  u64 generation = 0;
  Clock clock;          // join of the arrivals of this generation
  Clock done_clock;     // join of the last finished generation
  u32 popc = 0, all = 1, any = 0;
  u32 done_popc = 0, done_all = 0, done_any = 0;
  u32 waiting = 0;      // warps inside sync
  u32 first_op = 0;
};

// What happens-before needs to know about an mbarrier; its state is its own 64 bits of shared memory.
struct MbarrierOrder {
  Clock arriving, done;
  u16 component = 0;    // of the copies that complete on it
  u32 phases = 0;       // that have ended
  Access init;          // the last one
  bool valid = false;   // has been initialised, and not invalidated since
  // Arrivals of each warp in this phase, and in those before it: for the report of a deadlock.
  struct Arrivals {
    u32 now = 0;
    u64 before = 0;
    SiteKey site{};  // the last
  };
  std::map<u32, Arrivals> arrivals;  // by Warp::id
};

// One wgmma of a warpgroup: it runs when all four warps have issued it, at some time before the wait that covers it.
struct PendingWgmma {
  const tensor::WgmmaOp* op = nullptr;
  SiteKey site{};
  u32 arrived = 0;
  u64 descriptor_a[4] = {}, descriptor_b[4] = {};
  u32 accumulate = 0;              // bit per warp
  u32 fences = 0, commits = 0;     // executed before it by the warp that came first
  Frame* frames[4] = {};
  Clock start[4];                  // what comes before it in each warp
  std::vector<u32*> a[4], d[4];    // rows of each warp
  const u32* metadata[4] = {};     // of sparse A
};
struct Warpgroup {
  std::vector<PendingWgmma> queue; // in order of issue, from number `done` on
  u64 done = 0;
  struct Setmaxnreg {
    i64 registers;
    bool increase;
    SiteKey site;
  };
  std::vector<Setmaxnreg> setmaxnregs;  // in the order in which its warps execute them
  u16 component = 0;
};

// fence.proxy.tensormap::generic.acquire of a tensor map: who, and the writes of its words that a release had shown by then.
struct MapAcquire {
  Access by;
  std::array<Access, 32> shown;
};

struct Cta {
  Cluster* cluster = nullptr;
  u32 rank = 0;         // in the cluster
  u32 linear = 0;       // in the grid
  u32 x = 0, y = 0, z = 0;
  u32 register_pool = 0;  // registers a thread that no warp holds, summed over warps
  SharedMemory shared;
  std::array<Barrier, 16> barriers;
  std::unordered_map<u32, MbarrierOrder> mbarriers;  // by offset
  std::vector<Warpgroup> warpgroups;
  std::vector<Warp> warps;
  Clock ended;                 // what its lanes had seen when they exited
  bool has_ended = false;
  std::vector<Access> visits;  // by component: the last use of this CTA's shared memory by an agent or another CTA
};

struct Launch;

// The state of a group being run, and the services its handlers use.
struct Exec {
  u8* rows[2] = {nullptr, nullptr};
  u32* preds = nullptr;
  const SiteKey* late_site = nullptr;  // of an asynchronous operation that takes effect after its instruction
  u32 pc = 0;
  u32 active = 0;
  u32 stop_pc = kNone;  // smallest pc of the other groups in this frame: stop there to merge
  u32 event = 0;
  bool resumed = false, timed_out = false;
  bool checked = false, counting = false;
  u32 waiting = 0;      // lanes that left to wait, when tracing

  Frame* frame = nullptr;
  Warp* warp = nullptr;
  Cta* cta = nullptr;
  Cluster* cluster = nullptr;
  Launch* launch = nullptr;
  InstrCount* count = nullptr;  // of the current instruction, when counting
  Trace* trace = nullptr;       // null unless tracing

  enum Event : u32 { regroup = 1, preempt = 2, stop = 4, spin = 8 };

  template <class T>
  T* row(u32 number) const {
    return reinterpret_cast<T*>(rows[number >> 31] + std::size_t{number & 0x7fffffffu} * kRowBytes);
  }
  u32 pred(u32 encoded) const { return preds[encoded >> 1] ^ (0u - (encoded & 1)); }

  // Lanes `mask` go on at `at` as a group of their own.
  void split(u32 mask, u32 at);
  // Lanes `mask` leave to wait; they run the instruction at `at` (again) when the wait is over.
  void split_waiting(u32 mask, u32 at, const Wait& what);
  void split_into(u32 mask, Frame* callee);   // lanes go on at the start of a function just entered
  void yield_point();                         // a place where another warp may be scheduled
  void report(Check check, const Op& op, u32 lane, std::string message);
  void report(Check check, const Op& op, u32 lane, std::string message, const SiteKey& other, u32 other_warp,
              u32 other_lane, u32 other_cta);
  bool wants(Check check) const;
  SiteKey site(const Op& op) const;
};

// What a seed decides about a schedule once and for all (schedule.cpp).
struct Policy {
  enum Turns : u8 { alike, rushed, starved, ranked } turns = alike;
  u32 copies = 0, wgmma = 0;       // before one turn in so many a copy makes progress, a wgmma runs; 0: when all else waits
  enum Order : u8 { any, newest, oldest } order = any;
  u32 hold_every = 0, held = 0;    // of every so many copies one waits until nothing else can happen; 0: none
  u32 early_return = 0;            // one try_wait in so many comes back early; 0: none
  std::vector<u8> chosen;          // rushed, starved: which warps
  std::vector<u32> rank;           // ranked: the greatest that can run goes first
};

struct Cluster {
  Launch* launch = nullptr;
  u32 linear = 0;
  std::vector<Cta> ctas;
  std::vector<Warp*> warps;   // of all CTAs
  u64 rng = 0;
  bool stopped = false;
  u64 executed = 0;           // warp instructions
  u64 clock_offset = 0;       // time slept
  u64 progress = 0;           // bumped by everything another warp could wait for
  std::unique_ptr<GlobalMemory> global;     // null when nothing is to be checked
  std::vector<Component> components;        // of the clocks; the first are the warps
  std::unordered_map<u64, u32> pair_index;  // findings with two sides: check and sites -> finding + 1
  std::vector<Finding> findings;
  std::unordered_map<std::string, u32> finding_index;
  std::string output;
  std::vector<InstrCount>* counts = nullptr;
  // barrier.cluster: arrivals per phase
  std::unordered_map<u64, Clock> released;  // location -> what strong writes to it have published
  std::unordered_map<u64, std::vector<MapAcquire>> map_acquires;  // by address, of each lane the last
  u32 cluster_arrived = 0;
  u64 cluster_phase = 0;
  Clock cluster_clock, cluster_done_clock;

  // Copies under way. step() does a piece of the work and returns true when all is done.
  struct Agent {
    u64 id;
    SiteKey site;             // of the instruction that started it
    Warp* warp;
    u32 lane;
    bool has_read = false;    // the source may be reused
    std::function<bool(Agent&)> step;
  };
  std::vector<Agent> agents;
  u64 next_agent = 1;

  void start();
  u64 add_agent(const Exec& x, const Op& op, u32 lane, std::function<bool(Agent&)> work);
  bool agents_done(const std::vector<u64>& ids, bool read_only) const;
  // An asynchronous operation that starts now; `each`: of every lane for itself.
  Issue issue(const Exec& x, const Op& op, u32 lanes, bool each = false);
  // A finding with two sides, each a site, a warp and a lane; the text is made once a pair of sites.
  void report_pair(Check check, u32 here, const Warp& warp, u32 lane, u32 other, const Warp& other_warp, u32 other_lane,
                   const std::function<std::string()>& message);
  bool come_back_early();     // a try_wait returns without success though nothing has timed out
  void report_at(Check check, const SiteKey& key, const Warp& warp, u32 lane, std::string message);
  bool step();                // runs one warp for one turn; false when everything has ended or stopped
  u32 random(u32 below);
  void add_finding(Finding finding, const std::string& key);
  u32 site(const Exec& x, const Op& op);
  u32 site_index_of(const SiteKey& key) const;
 private:
  bool runnable(Warp& w);
  Warp* pick();
  void run_warp(Warp& w);
  u64 run_group(Exec& x, u64 quantum);
  bool ready(Warp& w, Group& g);
  void merge(Warp& w);
  u32 choose_group(Warp& w);
  void resume(Warp& w, Group& g);
  bool wake_timeouts();
  void report_deadlock();
  std::string describe_wait(const Warp& w, const Group& g) const;
  std::vector<Group> stuck_groups(const Warp& w) const;
  std::string describe_barriers(const Cta& cta) const;
  std::string describe_mbarriers(const Cta& cta) const;
  void choose_policy();
  bool run_agent(bool also_held);  // one step of one of them; false when there is none
  bool run_async(bool also_held);  // of them, or a wgmma
  bool step_agent(std::size_t at);
  u32 timeouts_ = 0;
  u64 stalled_progress_ = 0;
  Policy policy_;
  u64 turn_progress_ = 0;          // `progress` when a turn last followed the policy
  u32 idle_turns_ = 0;
};

struct Launch {
  const Linked* linked = nullptr;
  const LaunchConfig* config = nullptr;
  std::vector<Region> regions;     // sorted, disjoint
  std::vector<u64> param_block;    // aligned copy of the parameters
  u64 param_address = 0, param_bytes = 0;
  alignas(8) std::array<u32, 2> grid_workspace{};  // its size, the barrier of grid.sync()
  u64 budget = 0;
  u32 cluster_ctas = 1;
  // Clusters that talk to each other through global memory run in one thread and share these; otherwise `across` is null.
  std::unique_ptr<AcrossClusters> across;
  std::unordered_map<u64, u16> lane_components;  // lane_key -> component
  std::unordered_map<u64, Clock> released;       // location -> what strong writes of gpu scope have published
  u32 registers = 0;               // a thread's at launch; 0: setmaxnreg has no effect
  Trace* trace = nullptr;
  Footprint* footprint = nullptr;  // null unless counting
};

// The CTA of a rank of a cluster, by its number in the grid.
u32 cta_linear(const Launch& launch, u64 cluster, u32 rank);
// findings (report.cpp)
Site make_site(const Launch& launch, const SiteKey& key, u32 cta, u32 warp, u32 lane);
// wgmma (exec_wgmma.cpp)
bool run_wgmma(Cluster& cluster);
void cancel_wgmma(Warp& w, const Frame* frame);
u64 wgmma_finished(const Warp& w);  // how many wgmma of its warpgroup have run
// register pools (exec_setmaxnreg.cpp): registers a thread has when a kernel is launched; 0: unknown
u32 entry_registers(const FunctionAst& kernel, u32 most_requested);
void check_setmaxnreg(Exec& x);   // the warp has ended
std::string describe_registers(const Cta& cta);
// registers (exec_watch.cpp)
void start_watching(Frame& frame, u32 lanes);
void watch_wgmma(Exec& x, const Op& op, u32 accumulate);
void check_wgmma_waited(Exec& x);  // the warp has ended
// asynchronous copies (exec_async.cpp)
bool async_ready(const Cluster& cluster, const Warp& w, const Wait& wait, u32 lanes);
// mbarriers (exec_mbarrier.cpp)
bool mbarrier_ready(const Cluster& cluster, const Wait& wait);
// A copy has landed: its bytes count, and waits for the phase come after it. landed_on() is who writes for it.
Accessor landed_on(const Issue& issue, Cta& cta, u32 offset, bool async);
void mbarrier_complete(const Issue& issue, const SiteKey& site, Cta& cta, u32 offset, u32 bytes);
// Frames
Frame* push_frame(Warp& w, const LinkedFunction* fn, u32 lanes, Frame* parent, u32 local_base);
void release_lanes(Warp& w, Frame* frame, u32 lanes);
bool grow_local(Warp& w, u32 bytes, bool checked);
u64 special_value(const Exec& x, u32 special, u32 lane);
void exit_lanes(Exec& x, u32 mask);
void retry_barriers(Cta& cta);
void retry_cluster_barrier(Cluster& cluster);
// Lanes of `mask` must all be here before a .sync instruction runs; false: the group waits and will come back.
bool converge(Exec& x, const Op& op, u32 mask, u32 members);

std::unique_ptr<Linked> link_kernel(const Module& module, u32 kernel);
LaunchResult run_launch(const Linked& linked, const LaunchConfig& config);

}  // namespace tkpy::emulator
