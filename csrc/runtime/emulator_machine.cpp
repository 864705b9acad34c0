#include "emulator_machine.h"

#include <algorithm>
#include <sstream>

#include "emulator/tensor/tensor_map.h"

namespace tkpy::runtime {

struct EmulatorMachine::EmulatedKernel : Kernel {
  std::unique_ptr<emulator::Linked> linked;
  std::string module;
  std::uint32_t index = 0;
  std::uint32_t param_bytes = 0;
};

EmulatorMachine::EmulatorMachine(std::string kernels, EmulatorOptions options)
    : kernels_(std::move(kernels)), options_(options) {}

EmulatorMachine::~EmulatorMachine() = default;

void EmulatorMachine::add_image(std::string_view module, std::string image) {
  const std::lock_guard lock(mutex_);
  if (modules_.find(module) != modules_.end()) throw MachineError(std::string(module) + " has been loaded already");
  images_.insert_or_assign(std::string(module), std::move(image));
}

const emulator::Module& EmulatorMachine::module(const std::string& name) {
  if (const auto entry = modules_.find(name); entry != modules_.end()) return *entry->second;
  const auto image = images_.find(name);
  std::string ptx = image != images_.end() ? image->second : read_image(kernels_ + "/" + name + ".ptx");
  try {
    return *modules_.emplace(name, emulator::load_module(std::move(ptx))).first->second;
  } catch (const emulator::PtxError& error) {
    throw MachineError("module " + name + ": " + error.what());
  }
}

const Kernel& EmulatorMachine::kernel(std::string_view module_name, std::string_view entry) {
  const std::string key = std::string(module_name) + '\n' + std::string(entry);
  const std::lock_guard lock(mutex_);
  if (const auto known = found_.find(key); known != found_.end()) return *known->second;
  const emulator::Module& m = module(std::string(module_name));
  for (std::uint32_t i = 0; i < m.ast->functions.size(); ++i) {
    const emulator::FunctionAst& f = m.ast->functions[i];
    if (f.name != entry || !f.is_entry || !f.has_body) continue;
    auto made = std::make_unique<EmulatedKernel>();
    made->name = entry;
    made->module = module_name;
    made->linked = emulator::link_kernel(m, i);
    made->index = i;
    made->param_bytes = m.param_bytes(i);
    return *found_.emplace(key, std::move(made)).first->second;
  }
  throw MachineError("module " + std::string(module_name) + " has no kernel " + std::string(entry));
}

// Of an H100 whose GPCs have 16 multiprocessors each, where registers bind nothing.
int EmulatorMachine::resident_clusters(const Kernel&, const LaunchSpec& spec) {
  constexpr std::uint64_t kTogether = 16, kShared = 228 * 1024, kSystem = 1024, kThreads = 2048;
  const std::uint64_t ctas = std::min(kShared / (spec.shared + kSystem), kThreads / std::max<std::uint64_t>(1, spec.block.count()));
  const std::uint64_t each = std::max<std::uint64_t>(1, ctas) * kTogether / std::max<std::uint64_t>(1, spec.cluster.count());
  return static_cast<int>(std::max<std::uint64_t>(1, options_.multiprocessors / kTogether * each));
}

tk::tensor_map EmulatorMachine::encode(const TensorMapSpec& spec) {
  using emulator::tensor::MapType;
  using emulator::tensor::Promotion;
  if (const std::string rule = broken_rule(spec); !rule.empty()) throw MachineError("tensor map: " + rule);
  constexpr MapType types[] = {MapType::u8,   MapType::u8,  MapType::u16, MapType::s32, MapType::s64, MapType::f16,
                               MapType::bf16, MapType::f32, MapType::f64, MapType::u8,  MapType::u8};
  emulator::tensor::TensorMap map;
  map.type = types[static_cast<int>(spec.dtype)];
  map.rank = static_cast<std::uint32_t>(spec.rank);
  map.address = reinterpret_cast<std::uintptr_t>(spec.address);
  for (std::size_t d = 0; d < map.rank; ++d) {
    map.dim[d] = spec.dims[d];
    map.box[d] = spec.box[d];
    map.element_stride[d] = spec.element_strides[d];
    if (d > 0) map.stride[d - 1] = spec.strides[d];
  }
  map.swizzle = spec.swizzle == 128  ? emulator::tensor::Swizzle::b128
                : spec.swizzle == 64 ? emulator::tensor::Swizzle::b64
                : spec.swizzle == 32 ? emulator::tensor::Swizzle::b32
                                     : emulator::tensor::Swizzle::none;
  map.promotion = spec.l2_promotion == 256   ? Promotion::l2_256
                  : spec.l2_promotion == 128 ? Promotion::l2_128
                  : spec.l2_promotion == 64  ? Promotion::l2_64
                                             : Promotion::none;
  if (const std::string why = emulator::tensor::tensor_map_reason(map); !why.empty())
    throw MachineError("tensor map: " + why);
  tk::tensor_map result;
  emulator::tensor::encode_tensor_map(map, reinterpret_cast<std::uint8_t*>(result.opaque));
  return result;
}

namespace {

void require_launchable(const Kernel& kernel, const LaunchSpec& spec, std::uint32_t param_bytes) {
  const auto fail = [&](const std::string& why) { throw MachineError(describe(kernel, spec) + ": " + why); };
  if (spec.params.size() != param_bytes)
    fail("the kernel takes " + std::to_string(param_bytes) + " bytes of parameters, got " +
         std::to_string(spec.params.size()));
  if (spec.grid.count() == 0 || spec.block.count() == 0 || spec.block.count() > 1024)
    fail("a grid has at least one CTA, a CTA 1 to 1024 threads");
  if (spec.cluster.count() == 0 || spec.cluster.count() > 16 || spec.grid.x % spec.cluster.x ||
      spec.grid.y % spec.cluster.y || spec.grid.z % spec.cluster.z)
    fail("the grid must be a multiple of the cluster, and a cluster has at most 16 CTAs");
  if (spec.shared > emulator::kMaxShared)
    fail("at most " + std::to_string(emulator::kMaxShared) + " bytes of shared memory");
}

std::string summary(const emulator::LaunchResult& result) {
  std::ostringstream text;
  for (const emulator::Finding& f : result.findings) {
    text << "\n  " << emulator::check_name(f.check) << ": " << f.message << " [" << f.site.function << ", PTX line "
         << f.site.ptx_line;
    if (f.site.source_line) text << ", " << f.site.file << ':' << f.site.source_line;
    text << ", CTA " << f.site.cta << ", warp " << f.site.warp << ", lane " << f.site.lane << ']';
    if (f.times > 1) text << " x " << f.times;
  }
  return text.str();
}

void add_to(KernelCount& sum, const emulator::LaunchResult& result, const std::string& module, const emulator::Module& code) {
  sum.module = module;
  sum.code = &code;
  sum.launches += 1;
  sum.sectors_read += result.sectors_read;
  sum.sectors_written += result.sectors_written;
  sum.counters.resize(result.counters.size());
  for (std::size_t f = 0; f < result.counters.size(); ++f) {
    sum.counters[f].resize(result.counters[f].size());
    for (std::size_t i = 0; i < result.counters[f].size(); ++i) sum.counters[f][i].add(result.counters[f][i]);
  }
}

}  // namespace

void EmulatorMachine::launch(const Kernel& kernel, const LaunchSpec& spec) {
  const auto& found = static_cast<const EmulatedKernel&>(kernel);  // made by this machine
  require_launchable(kernel, spec, found.param_bytes);
  emulator::LaunchConfig config;
  config.kernel = found.index;
  config.grid = {spec.grid.x, spec.grid.y, spec.grid.z};
  config.block = {spec.block.x, spec.block.y, spec.block.z};
  config.cluster = {spec.cluster.x, spec.cluster.y, spec.cluster.z};
  config.dynamic_shared = spec.shared;
  for (const std::byte b : spec.params) config.params.push_back(std::to_integer<std::uint8_t>(b));
  for (const View& view : spec.views) {
    const auto start = reinterpret_cast<std::uintptr_t>(view.data);
    config.regions.push_back({start, start + static_cast<std::uint64_t>(view.extent()), view.writable});
  }
  config.seed = options_.seed;
  config.checks = options_.checks;
  config.counters = options_.counters;
  config.rough = options_.rough;
  config.budget = options_.budget;
  config.threads = options_.threads;
  config.poll = options_.poll;
  last_ = emulator::run_launch(*found.linked, config);
  if (options_.counters) add_to(counted_[kernel.name], last_, found.module, *found.linked->module);
  if (!last_.findings.empty() || last_.fatal) throw MachineError(describe(kernel, spec) + ':' + summary(last_));
}

}  // namespace tkpy::runtime
