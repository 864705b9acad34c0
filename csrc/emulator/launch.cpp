// Linking a kernel (shared-memory layout, constant pools) and running a grid over host threads.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <optional>
#include <thread>

#include "exec.h"

namespace tkpy::emulator {

namespace {

// Functions the kernel can reach; an indirect call may reach any.
std::vector<bool> reachable(const Module& m, u32 kernel) {
  std::vector<bool> seen(m.functions.size(), false);
  std::vector<u32> stack{kernel};
  seen[kernel] = true;
  auto visit = [&](u32 f) {
    if (f < seen.size() && !seen[f] && m.ast->functions[f].has_body) {
      seen[f] = true;
      stack.push_back(f);
    }
  };
  while (!stack.empty()) {
    const Function& f = m.functions[stack.back()];
    stack.pop_back();
    for (u32 callee : f.callees) visit(callee);
    if (f.has_indirect_call)
      for (u32 i = 0; i < m.functions.size(); ++i)
        if (!m.ast->functions[i].is_entry) visit(i);
  }
  return seen;
}

// Static shared variables first, in order of declaration, then dynamic memory (all .extern .shared arrays share one base).
// Module-level variables belong to every kernel that mentions them; only those mentioned take space.
void layout_shared(const Module& m, const std::vector<bool>& in, Linked& l) {
  std::vector<bool> used(m.ast->symbols.size(), false);
  for (u32 i = 0; i < m.functions.size(); ++i) {
    if (!in[i]) continue;
    for (const Relocation& r : m.functions[i].relocations) used[r.symbol] = true;
  }
  u64 at = kSharedBase;
  u32 dynamic_align = 16;
  for (u32 i = 0; i < m.ast->symbols.size(); ++i) {
    const Symbol& s = m.ast->symbols[i];
    if (s.space != Space::shared || !used[i]) continue;
    if (s.is_dynamic) {
      dynamic_align = std::max(dynamic_align, s.align);
      continue;
    }
    at = align_up(at, std::max(s.align, 1u));
    l.shared_address[i] = at;
    at += s.bytes;
    if (at > kSharedBase + kMaxShared) throw PtxError(s.line, "static shared memory of the kernel is larger than 227 KiB");
  }
  l.static_shared = static_cast<u32>(at - kSharedBase);
  l.dynamic_base = static_cast<u32>(align_up(at, dynamic_align));
  for (u32 i = 0; i < m.ast->symbols.size(); ++i)
    if (m.ast->symbols[i].is_dynamic) l.shared_address[i] = l.dynamic_base;
}

void link_function(const Function& f, const Linked& l, LinkedFunction& out) {
  out.function = &f;
  out.ops = f.ops;
  std::vector<Constant> pool = f.constants;
  for (const Relocation& r : f.relocations) {
    if (r.kind == Relocation::op_imm) out.ops[r.index].imm += static_cast<i64>(l.shared_address[r.symbol]);
    else pool[r.index].bits += l.shared_address[r.symbol];
  }
  std::size_t rows = 0;
  for (const Constant& c : pool) rows += c.wide ? 2 : 1;
  out.constant_rows.assign(rows * kLanes + 16, 0);
  out.constants = reinterpret_cast<u8*>(align_up(reinterpret_cast<u64>(out.constant_rows.data()), 64));
  u8* at = out.constants;
  for (const Constant& c : pool) {
    for (u32 lane = 0; lane < kLanes; ++lane) {
      if (c.wide) reinterpret_cast<u64*>(at)[lane] = c.bits;
      else reinterpret_cast<u32*>(at)[lane] = static_cast<u32>(c.bits);
    }
    at += kRowBytes * (c.wide ? 2 : 1);
  }
}

std::vector<Region> sorted_regions(const Linked& linked, const LaunchConfig& config) {
  std::vector<Region> all = config.regions;
  for (const Module::Region& r : linked.module->regions)
    if (r.bytes) all.push_back({r.address, r.address + r.bytes, r.writable});
  if (const DeviceHeap* heap = linked.module->heap.get()) all.push_back({heap->address(), heap->address() + DeviceHeap::kBytes, true});
  std::erase_if(all, [](const Region& r) { return r.hi <= r.lo; });
  std::sort(all.begin(), all.end(), [](const Region& a, const Region& b) { return a.lo < b.lo; });
  std::vector<Region> merged;  // overlapping arguments (views of one buffer) become one range
  for (const Region& r : all) {
    if (!merged.empty() && r.lo < merged.back().hi) {
      merged.back().hi = std::max(merged.back().hi, r.hi);
      merged.back().writable |= r.writable;
    } else {
      merged.push_back(r);
    }
  }
  if (DeviceHeap* heap = linked.module->heap.get())
    for (Region& r : merged)
      if (r.lo == heap->address()) r.heap = heap;
  return merged;
}

u32 checks_bit(Check check) { return 1u << static_cast<u32>(check); }

std::unique_ptr<Cluster> make_cluster(Launch& launch, u64 index, std::vector<InstrCount>& counts) {
  const LaunchConfig& c = *launch.config;
  auto cluster = std::make_unique<Cluster>();
  cluster->launch = &launch;
  cluster->linear = static_cast<u32>(index);
  cluster->counts = &counts;
  cluster->rng = (c.seed + 1) * 0xd1342543de82ef95ull + index * 0x9e3779b97f4a7c15ull;
  cluster->ctas = std::vector<Cta>(launch.cluster_ctas);
  if (c.checks & (checks_bit(Check::global_race) | checks_bit(Check::proxy_fence) | checks_bit(Check::non_coherent_read))) cluster->global = std::make_unique<GlobalMemory>();
  for (u32 rank = 0; rank < launch.cluster_ctas; ++rank) {
    Cta& cta = cluster->ctas[rank];
    cta.rank = rank;
    cta.linear = cta_linear(launch, index, rank);
    cta.x = cta.linear % c.grid.x;
    cta.y = cta.linear / c.grid.x % c.grid.y;
    cta.z = static_cast<u32>(cta.linear / (u64{c.grid.x} * c.grid.y));
  }
  cluster->start();
  return cluster;
}

// What is left of a cluster that has ended.
struct Outcome {
  std::unique_ptr<GlobalMemory> global;
  std::vector<Finding> findings;
  std::string output;
  u64 executed = 0;
  bool stopped = false;
};

Outcome take(Cluster& c) { return {std::move(c.global), std::move(c.findings), std::move(c.output), c.executed, c.stopped}; }

// Adds what clusters leave to the result in their order, each as soon as all before it have ended: the result is the same
// whatever the number of host threads, and only those that ended early are kept.
class Gather {
 public:
  Gather(const Launch& launch, u64 clusters) : launch_(launch), clusters_(clusters) {}
  void end(u64 index, Outcome outcome) {
    early_.emplace(index, std::move(outcome));
    for (auto first = early_.begin(); first != early_.end() && first->first == next_; first = early_.erase(first), ++next_)
      add(first->first, first->second);
  }
  u64 next() const { return next_; }  // the first that has not ended
  LaunchResult finish() {             // a cluster may have stopped the others before they ended
    for (auto& [index, outcome] : early_) add(index, outcome);
    early_.clear();
    return std::move(result_);
  }

 private:
  void add(u64 index, Outcome& o) {
    // Clusters that run apart have their errors each: those after the first that stopped would not have started.
    if (result_.fatal && !launch_.linked->talks_across_ctas) return;
    if (o.global && clusters_ > 1) across_.add(launch_, static_cast<u32>(index), *o.global, o.findings);
    for (Finding& f : o.findings) {
      const std::string key = std::to_string(static_cast<u32>(f.check)) + f.site.function + std::to_string(f.site.ptx_line) + "/" +
                              f.other.function + std::to_string(f.other.ptx_line);
      const auto [entry, fresh] = seen_.try_emplace(key, result_.findings.size());
      if (fresh) result_.findings.push_back(std::move(f));
      else result_.findings[entry->second].times += f.times;
    }
    result_.output += o.output;
    result_.warp_instructions += o.executed;
    result_.fatal |= o.stopped;
  }

  const Launch& launch_;
  const u64 clusters_;
  std::map<u64, Outcome> early_;
  u64 next_ = 0;
  AcrossClusters across_;
  std::unordered_map<std::string, std::size_t> seen_;
  LaunchResult result_;
};

// CTAs that talk to each other through global memory: one host thread, interleaved, up to a device's worth at a time.
void run_together(Launch& launch, u64 clusters, Gather& gather, std::vector<InstrCount>& counts, const std::atomic<bool>& ended) {
  const u64 resident = std::max<u64>(1, 264 / launch.cluster_ctas);
  std::vector<std::pair<u64, std::unique_ptr<Cluster>>> live;
  u64 next = 0;
  u64 rng = launch.config->seed * 0x2545f4914f6cdd1dull + 1;
  while (!ended && (next < clusters || !live.empty())) {
    while (next < clusters && live.size() < resident) {
      live.emplace_back(next, make_cluster(launch, next, counts));
      ++next;
    }
    rng = rng * 6364136223846793005ull + 1442695040888963407ull;
    const std::size_t at = (rng >> 33) % live.size();
    if (live[at].second->step()) continue;
    Outcome outcome = take(*live[at].second);
    outcome.global.reset();  // compared with the others' as it happened
    const bool stopped = outcome.stopped;
    gather.end(live[at].first, std::move(outcome));
    if (stopped) return;  // others may wait for this one for ever
    live.erase(live.begin() + static_cast<std::ptrdiff_t>(at));
  }
}

// The host threads of a launch, and the thread that waits for them. Clusters that run apart are taken in order, and none
// starts far ahead of the slowest; those that talk to each other are one thread's.
class Crew {
 public:
  Crew(Launch& launch, u64 clusters, Gather& gather) : launch_(launch), clusters_(clusters), gather_(gather) {}
  void run(std::vector<std::vector<InstrCount>>& counts) {
    std::vector<std::thread> threads;
    threads.reserve(counts.size());
    try {
      for (auto& of_worker : counts) threads.emplace_back(&Crew::work, this, std::ref(of_worker));
    } catch (const std::exception&) {
      // The host has no room for more threads: those there are do it all.
    }
    if (threads.empty()) work(counts[0]);
    else wait(threads.size());
    for (std::thread& t : threads) t.join();
    if (error_) std::rethrow_exception(error_);
  }

 private:
  static constexpr u64 kAhead = 1024;
  static constexpr std::chrono::milliseconds kBetweenPolls{50};

  // An exception (memory has run out) ends the launch, in the thread that called it.
  void work(std::vector<InstrCount>& counts) noexcept {
    try {
      if (launch_.linked->talks_across_ctas) run_together(launch_, clusters_, gather_, counts, ended_);
      else run_apart(counts);
    } catch (...) {
      end(std::current_exception());
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    ++back_;
    moved_.notify_all();
  }

  void run_apart(std::vector<InstrCount>& counts) {
    while (const std::optional<u64> index = take_next()) {
      auto cluster = make_cluster(launch_, *index, counts);
      while (!ended_ && cluster->step()) {}
      Outcome outcome = take(*cluster);
      cluster.reset();
      const std::lock_guard<std::mutex> lock(mutex_);
      if (outcome.stopped) clusters_ = std::min(clusters_, *index);
      gather_.end(*index, std::move(outcome));
      moved_.notify_all();
    }
  }

  void wait(std::size_t workers) {
    std::unique_lock<std::mutex> lock(mutex_);
    while (!moved_.wait_for(lock, kBetweenPolls, [&] { return back_ == workers; })) {
      if (!launch_.config->poll || ended_) continue;
      lock.unlock();
      try {
        launch_.config->poll();
      } catch (...) {
        end(std::current_exception());
      }
      lock.lock();
    }
  }

  void end(std::exception_ptr why) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!error_) error_ = std::move(why);
    ended_ = true;
    clusters_ = 0;
    moved_.notify_all();
  }

  std::optional<u64> take_next() {
    std::unique_lock<std::mutex> lock(mutex_);
    moved_.wait(lock, [&] { return next_ >= clusters_ || next_ < gather_.next() + kAhead; });
    if (next_ >= clusters_) return std::nullopt;
    return next_++;
  }

  Launch& launch_;
  u64 clusters_;  // to start; fewer once one has stopped
  Gather& gather_;
  std::mutex mutex_;
  std::condition_variable moved_;
  u64 next_ = 0;
  std::size_t back_ = 0;  // workers that have ended
  std::atomic<bool> ended_{false};  // by an exception
  std::exception_ptr error_;
};

}  // namespace

u32 cta_linear(const Launch& launch, u64 cluster, u32 rank) {
  const Dim3 &grid = launch.config->grid, &size = launch.config->cluster;
  const u64 columns = grid.x / size.x, rows = grid.y / size.y;
  const u64 x = cluster % columns * size.x + rank % size.x;
  const u64 y = cluster / columns % rows * size.y + rank / size.x % size.y;
  const u64 z = cluster / columns / rows * size.z + rank / size.x / size.y;
  return static_cast<u32>(x + grid.x * (y + grid.y * z));
}

std::unique_ptr<Linked> link_kernel(const Module& module, u32 kernel) {
  auto l = std::make_unique<Linked>();
  l->module = &module;
  l->kernel = kernel;
  l->shared_address.resize(module.ast->symbols.size());
  l->functions.resize(module.functions.size());
  const std::vector<bool> in = reachable(module, kernel);
  layout_shared(module, in, *l);
  u32 sites = 0;
  for (u32 i = 0; i < module.functions.size(); ++i) {
    if (!in[i]) continue;
    link_function(module.functions[i], *l, l->functions[i]);
    l->functions[i].first_counter = l->counters;
    l->functions[i].first_site = sites;
    sites += static_cast<u32>(l->functions[i].ops.size());
    l->counters += static_cast<u32>(module.ast->functions[i].code.size()) + 1;
    l->talks_across_ctas |= module.functions[i].talks_across_ctas;
    l->most_registers = std::max(l->most_registers, module.functions[i].most_registers);
  }
  return l;
}

LaunchResult run_launch(const Linked& linked, const LaunchConfig& config) {
  constexpr u64 kMostThreads = 1024;
  Launch launch;
  launch.linked = &linked;
  launch.config = &config;
  launch.regions = sorted_regions(linked, config);
  launch.cluster_ctas = static_cast<u32>(config.cluster.count());
  launch.registers = config.registers ? config.registers
                                      : entry_registers(linked.module->ast->functions[linked.kernel], linked.most_registers);
  launch.budget = (config.budget ? config.budget : u64{200'000'000}) * launch.cluster_ctas;
  launch.param_bytes = config.params.size();
  launch.param_block.resize(config.params.size() / 8 + 33);
  launch.param_address = align_up(reinterpret_cast<u64>(launch.param_block.data()), 128);
  if (!config.params.empty())
    std::memcpy(reinterpret_cast<void*>(launch.param_address), config.params.data(), config.params.size());
  std::optional<Footprint> footprint;
  if (config.counters) launch.footprint = &footprint.emplace(launch.regions);
  // Generic accesses may read the parameter block.
  launch.regions.push_back({launch.param_address, launch.param_address + launch.param_bytes, false});
  const u64 workspace = reinterpret_cast<u64>(launch.grid_workspace.data());
  launch.regions.push_back({workspace, workspace + sizeof launch.grid_workspace, true});
  std::sort(launch.regions.begin(), launch.regions.end(), [](const Region& a, const Region& b) { return a.lo < b.lo; });

  const u64 clusters = config.grid.count() / launch.cluster_ctas;
  std::unique_ptr<Trace> trace;
  if (config.trace_slots) {
    // L1 and shared memory share 256 KB. The place in the middle of a wave stands for all.
    const u64 shared = linked.dynamic_base + config.dynamic_shared - kSharedBase;
    const u32 slot = static_cast<u32>(std::min<u64>(clusters, config.trace_slots) / 2);
    trace = std::make_unique<Trace>(config.trace_slots, slot, (u64{256} << 10) - std::min<u64>(shared, 228u << 10));
    launch.trace = trace.get();
    for (const Region& r : config.regions)
      if (config.trace_warm) trace->warm(r.lo, r.hi);
  }
  const bool together = linked.talks_across_ctas;
  if (together && clusters > 1 && config.checks & (checks_bit(Check::global_race) | checks_bit(Check::non_coherent_read))) launch.across = std::make_unique<AcrossClusters>();
  const std::size_t workers = together || trace ? 1 : std::clamp<u64>(config.threads, 1, std::clamp<u64>(clusters, 1, kMostThreads));
  std::vector<std::vector<InstrCount>> counts(workers, std::vector<InstrCount>(config.counters ? linked.counters : 0));
  Gather gather(launch, clusters);
  Crew(launch, clusters, gather).run(counts);

  LaunchResult result = gather.finish();
  if (trace) result.trace = trace->take();
  if (footprint) {
    result.sectors_read = footprint->sectors_read();
    result.sectors_written = footprint->sectors_written();
  }
  result.counters.resize(linked.functions.size());
  for (std::size_t i = 0; i < linked.functions.size() && config.counters; ++i) {
    if (!linked.functions[i].function) continue;
    auto& rows = result.counters[i];
    rows.resize(linked.module->ast->functions[i].code.size());
    for (const auto& worker : counts)
      for (std::size_t k = 0; k < rows.size(); ++k) rows[k].add(worker[linked.functions[i].first_counter + k]);
    for (const InstrCount& c : rows) result.thread_instructions += c.lanes;
  }
  return result;
}

}  // namespace tkpy::emulator
