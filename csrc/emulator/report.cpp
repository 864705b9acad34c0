// Findings of a run: where they are, what is kept of them, and the numbering of places that takes part in their keys.
#include "exec.h"

namespace tkpy::emulator {

bool Exec::wants(Check check) const {
  // Memory errors are never silent: the access does not happen. Nor is what ends the run.
  return check_is_fatal(check) || cluster->stopped || check == Check::out_of_bounds || check == Check::misaligned ||
         (launch->config->checks >> static_cast<u32>(check) & 1);
}

Site make_site(const Launch& launch, const SiteKey& key, u32 cta, u32 warp, u32 lane) {
  Site s;
  const FunctionAst& f = launch.linked->module->ast->functions[key.function];
  s.function = f.name;
  s.cta = cta, s.warp = warp, s.lane = lane;
  if (f.code.empty()) return s;
  const Ast& ast = *launch.linked->module->ast;
  const Instr& in = f.code[launch.linked->functions[key.function].ops[key.op].instr];
  s.ptx_line = in.line;
  for (char c : in.text.substr(0, 400)) {
    const bool blank = c == '\n' || c == '\t' || c == ' ' || c == '\r';
    if (!blank) s.text += c;
    else if (!s.text.empty() && s.text.back() != ' ') s.text += ' ';
  }
  const Loc& loc = ast.locs[in.loc];
  s.source_line = loc.line;
  const auto file = ast.files.find(loc.file);
  if (loc.line && file != ast.files.end()) s.file = file->second;
  return s;
}

SiteKey Exec::site(const Op& op) const {
  if (late_site) return *late_site;
  return {frame->fn->function->index, static_cast<u32>(&op - frame->fn->ops.data())};
}

void Exec::report(Check check, const Op& op, u32 lane, std::string message) {
  report(check, op, lane, std::move(message), SiteKey{kNone, 0}, 0, 0, 0);
}

void Exec::report(Check check, const Op& op, u32 lane, std::string message, const SiteKey& other, u32 other_warp,
                  u32 other_lane, u32 other_cta) {
  if (check_is_fatal(check)) {
    cluster->stopped = true;
    event |= stop;
  }
  if (!wants(check)) return;
  const SiteKey here = site(op);
  std::string key = std::to_string(static_cast<u32>(check)) + "/" + std::to_string(here.function) + "/" + std::to_string(here.op) +
                    "/" + std::to_string(other.function) + "/" + std::to_string(other.op);
  Finding f;
  f.check = check;
  f.message = std::move(message);
  f.site = make_site(*launch, here, cta->linear, warp->index, lane);
  if (other.function != kNone) {
    f.has_other = true;
    f.other = make_site(*launch, other, other_cta, other_warp, other_lane);
  }
  cluster->add_finding(std::move(f), key);
}

void Cluster::report_at(Check check, const SiteKey& key, const Warp& warp, u32 lane, std::string message) {
  if (check_is_fatal(check)) stopped = true;
  const bool always = check_is_fatal(check) || check == Check::out_of_bounds || check == Check::misaligned;
  if (!always && !(launch->config->checks >> static_cast<u32>(check) & 1)) return;
  Finding f;
  f.check = check;
  f.message = std::move(message);
  f.site = make_site(*launch, key, warp.cta->linear, warp.index, lane);
  add_finding(std::move(f), std::to_string(static_cast<u32>(check)) + "/" + std::to_string(key.function) + "/" + std::to_string(key.op));
}

void Cluster::report_pair(Check check, u32 here, const Warp& warp, u32 lane, u32 other, const Warp& other_warp, u32 other_lane,
                          const std::function<std::string()>& message) {
  if (!(launch->config->checks >> static_cast<u32>(check) & 1)) return;
  const u64 key = u64{static_cast<u32>(check)} << 48 | u64{here & 0xffffff} << 24 | (other & 0xffffff);
  u32& known = pair_index[key];
  if (known) {
    if (known <= findings.size()) ++findings[known - 1].times;
    return;
  }
  const std::size_t before = findings.size();
  Finding f;
  f.check = check;
  f.message = message();
  f.site = make_site(*launch, launch->linked->site(here), warp.cta->linear, warp.index, lane);
  f.has_other = true;
  f.other = make_site(*launch, launch->linked->site(other), other_warp.cta->linear, other_warp.index, other_lane);
  add_finding(std::move(f), "pair/" + std::to_string(key));
  known = findings.size() > before ? static_cast<u32>(findings.size()) : kNone;
}

Issue Cluster::issue(const Exec& x, const Op& op, u32 lanes, bool each) {
  Issue i;
  i.cluster = this;
  i.warp = x.warp;
  i.lane = static_cast<u32>(std::countr_zero(lanes));
  i.site = site(x, op);
  i.checked = x.checked;
  if (x.checked && each) publish_each(*x.warp, i.start);
  else if (x.checked) publish(*x.warp, lanes, i.start);
  return i;
}

void Cluster::add_finding(Finding finding, const std::string& key) {
  constexpr std::size_t kMostFindings = 200;
  const auto [entry, fresh] = finding_index.try_emplace(key, static_cast<u32>(findings.size()));
  if (!fresh) {
    ++findings[entry->second].times;
  } else if (findings.size() < kMostFindings || check_is_fatal(finding.check)) {
    findings.push_back(std::move(finding));
  } else {
    finding_index.erase(key);
  }
}

u32 Cluster::site(const Exec& x, const Op& op) { return site_index_of(x.site(op)); }

u32 Cluster::site_index_of(const SiteKey& key) const { return launch->linked->site_index(key); }

SiteKey Linked::site(u32 index) const {
  u32 best = 0;
  for (u32 i = 0; i < functions.size(); ++i)
    if (functions[i].function && functions[i].first_site < index && functions[i].first_site >= functions[best].first_site) best = i;
  return {best, index - functions[best].first_site - 1};
}

}  // namespace tkpy::emulator
