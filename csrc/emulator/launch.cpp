// Linking a kernel (shared-memory layout, constant pools) and running a grid over host threads.
#include <algorithm>
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
  if (c.checks & (checks_bit(Check::global_race) | checks_bit(Check::proxy_fence))) cluster->global = std::make_unique<GlobalMemory>();
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

struct Outcome {
  std::unique_ptr<GlobalMemory> global;
  std::vector<Finding> findings;
  std::string output;
  u64 executed = 0;
  bool stopped = false;
};

Outcome take(Cluster& c) { return {std::move(c.global), std::move(c.findings), std::move(c.output), c.executed, c.stopped}; }

// CTAs that talk to each other through global memory: one host thread, interleaved, up to a device's worth at a time.
void run_together(Launch& launch, u64 clusters, std::vector<Outcome>& outcomes, std::vector<InstrCount>& counts) {
  const u64 resident = std::max<u64>(1, 264 / launch.cluster_ctas);
  std::vector<std::pair<u64, std::unique_ptr<Cluster>>> live;
  u64 next = 0;
  u64 rng = launch.config->seed * 0x2545f4914f6cdd1dull + 1;
  while (next < clusters || !live.empty()) {
    while (next < clusters && live.size() < resident) {
      live.emplace_back(next, make_cluster(launch, next, counts));
      ++next;
    }
    rng = rng * 6364136223846793005ull + 1442695040888963407ull;
    const std::size_t at = (rng >> 33) % live.size();
    if (live[at].second->step()) continue;
    outcomes[live[at].first] = take(*live[at].second);
    outcomes[live[at].first].global.reset();
    const bool stopped = live[at].second->stopped;
    live.erase(live.begin() + static_cast<std::ptrdiff_t>(at));
    if (stopped) return;  // others may wait for this one for ever
  }
}

// What clusters did to global memory is brought together in their order, as soon as all before them have ended.
class InOrder {
 public:
  InOrder(const Launch& launch, std::vector<Outcome>& outcomes) : launch_(launch), outcomes_(outcomes), ended_(outcomes.size()) {}
  void end(u64 index) {
    const std::lock_guard<std::mutex> lock(mutex_);
    ended_[index] = true;
    for (; next_ < ended_.size() && ended_[next_]; ++next_) {
      Outcome& o = outcomes_[next_];
      if (o.global && outcomes_.size() > 1) across_.add(launch_, static_cast<u32>(next_), *o.global, o.findings);
      o.global.reset();
    }
  }

 private:
  const Launch& launch_;
  std::vector<Outcome>& outcomes_;
  std::vector<bool> ended_;
  u64 next_ = 0;
  AcrossClusters across_;
  std::mutex mutex_;
};

void run_apart(Launch& launch, u64 clusters, std::vector<Outcome>& outcomes, std::vector<std::vector<InstrCount>>& counts) {
  std::atomic<u64> next{0}, first_stopped{~u64{0}};
  InOrder in_order(launch, outcomes);
  auto work = [&](std::size_t worker) {
    while (true) {
      const u64 index = next.fetch_add(1);
      if (index >= clusters || index > first_stopped.load()) return;
      auto cluster = make_cluster(launch, index, counts[worker]);
      while (cluster->step()) {}
      const bool stopped = cluster->stopped;
      outcomes[index] = take(*cluster);
      in_order.end(index);
      if (!stopped) continue;
      u64 seen = first_stopped.load();
      while (index < seen && !first_stopped.compare_exchange_weak(seen, index)) {}
    }
  };
  std::vector<std::thread> threads;
  for (std::size_t i = 1; i < counts.size(); ++i) threads.emplace_back(work, i);
  work(0);
  for (std::thread& t : threads) t.join();
}

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
  // Generic accesses may read the parameter block.
  launch.regions.push_back({launch.param_address, launch.param_address + launch.param_bytes, false});
  std::sort(launch.regions.begin(), launch.regions.end(), [](const Region& a, const Region& b) { return a.lo < b.lo; });

  const u64 clusters = config.grid.count() / launch.cluster_ctas;
  std::unique_ptr<Trace> trace;
  if (config.trace_slots) {
    // L1 and shared memory share 256 KB. The place in the middle of a wave stands for all.
    const u64 shared = linked.dynamic_base + config.dynamic_shared - kSharedBase;
    const u32 slot = static_cast<u32>(std::min<u64>(clusters, config.trace_slots) / 2);
    trace = std::make_unique<Trace>(config.trace_slots, slot, (u64{256} << 10) - std::min<u64>(shared, 228u << 10));
    launch.trace = trace.get();
  }
  std::vector<Outcome> outcomes(clusters);
  const bool together = linked.talks_across_ctas;
  if (together && clusters > 1 && config.checks & checks_bit(Check::global_race)) launch.across = std::make_unique<AcrossClusters>();
  const std::size_t workers = together || trace ? 1 : std::max<std::size_t>(1, std::min<u64>(config.threads, clusters));
  std::vector<std::vector<InstrCount>> counts(workers, std::vector<InstrCount>(config.counters ? linked.counters : 0));
  if (together) run_together(launch, clusters, outcomes, counts[0]);
  else run_apart(launch, clusters, outcomes, counts);

  // In order of CTA, and nothing after the first that stopped: the same whatever the number of host threads.
  LaunchResult result;
  std::unordered_map<std::string, std::size_t> seen;
  for (Outcome& o : outcomes) {
    for (Finding& f : o.findings) {
      const std::string key = std::to_string(static_cast<u32>(f.check)) + f.site.function + std::to_string(f.site.ptx_line) + "/" +
                              f.other.function + std::to_string(f.other.ptx_line);
      const auto [entry, fresh] = seen.try_emplace(key, result.findings.size());
      if (fresh) result.findings.push_back(std::move(f));
      else result.findings[entry->second].times += f.times;
    }
    result.output += o.output;
    result.warp_instructions += o.executed;
    result.fatal |= o.stopped;
    if (o.stopped && !together) break;
  }
  if (trace) result.trace = trace->take();
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
