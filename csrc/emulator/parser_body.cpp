// Function bodies: scopes, labels, instructions and their operands (PTX ISA 4.3, 6 and 7).
#include "parser.h"

#include <algorithm>

#include "specials.h"

namespace tkpy::emulator {

void Parser::body(FunctionAst& f) {
  expect('{', "at a function body");
  u32 depth = 1;
  while (depth) {
    if (lexer_.peek().kind == Tok::end) fail("function '" + f.name + "' has no end");
    if (accept('{')) {
      if (++depth > kMaxNesting) fail("scopes nested too deeply");
      const u32 id = static_cast<u32>(scope_parent_.size());
      scope_parent_.push_back(scopes_.back().id);
      labels_.push_back({id, {}});
      scopes_.push_back(Scope{id, {}, {}, {}});
    } else if (accept('}')) {
      --depth;
      if (depth) scopes_.pop_back();
    } else {
      statement(f);
    }
  }
}

void Parser::statement(FunctionAst& f) {
  const Token token = lexer_.peek();
  if (accept(';')) return;
  if (token.kind == Tok::dotted) {
    if (!body_directive(f)) fail("unknown directive " + describe(token));
    return;
  }
  if (token.kind == Tok::identifier && lexer_.peek(1).is(':')) {
    lexer_.next();
    lexer_.next();
    label(f, token.text, token.line);
    return;
  }
  instruction(f);
}

bool Parser::body_directive(FunctionAst& f) {
  const bool is_extern = accept_dot("extern");
  Space space;
  if (accept_dot("reg")) registers();
  else if (lexer_.peek().dot("loc")) directive_loc();
  else if (accept_dot("file")) directive_file();
  else if (accept_dot("pragma")) {
    while (lexer_.peek().kind == Tok::string || lexer_.peek().is(',')) lexer_.next();
    expect(';', "after .pragma");
  } else if (accept_space(space)) variables(space, is_extern, function_index_);
  else if (lexer_.peek().dot("maxntid") || lexer_.peek().dot("minnctapersm")) performance_directives(f);
  else return false;
  return true;
}

// .loc file line column [, function_name label, inlined_at file line column]: the innermost position is the one named.
void Parser::directive_loc() {
  const u32 line = lexer_.next().line;
  const u64 file = integer("a file number");
  const u64 source_line = integer("a line number");
  lexer_.skip_line(line);
  const u64 key = file << 32 | (source_line & 0xffffffffu);
  auto [entry, fresh] = loc_index_.try_emplace(key, static_cast<u32>(ast_.locs.size()));
  if (fresh) ast_.locs.push_back({static_cast<u32>(file), static_cast<u32>(source_line)});
  loc_ = entry->second;
}

u32 Parser::add_register(FunctionAst& f, Type type, std::string_view name) {
  if (f.registers.size() >= kMaxRegisters) fail("too many registers in use");
  f.registers.push_back({type, std::string(name)});
  return static_cast<u32>(f.registers.size() - 1);
}

void Parser::registers() {
  Type type = Type::none;
  while (lexer_.peek().kind == Tok::dotted) {
    const Token token = lexer_.next();
    type = type_from_name(token.text);
    if (type == Type::none) throw PtxError(token.line, "unknown register type " + describe(token));
  }
  if (type == Type::none) fail("a register needs a type");
  Scope& scope = scopes_.back();
  do {
    const Token name = lexer_.peek();
    identifier("a register name");
    if (accept('<')) {
      const u64 count = integer("a register count");
      if (count > kMaxRegisters) throw PtxError(name.line, "too many registers");
      expect('>', "after a register count");
      scope.ranges[name.text] = Range{type, static_cast<u32>(count), {}};
    } else {
      scope.registers[name.text] = add_register(*function_, type, name.text);
    }
  } while (accept(','));
  expect(';', "after registers");
}

u32 Parser::find_register(std::string_view name) {
  std::size_t digits = name.size();
  while (digits > 0 && name[digits - 1] >= '0' && name[digits - 1] <= '9') --digits;
  for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
    const auto exact = scope->registers.find(name);
    if (exact != scope->registers.end()) return exact->second;
    // `t<4>` declares t0..t3; a prefix may itself end in a digit, so every split is tried.
    for (std::size_t split = digits; split < name.size() && name.size() - split <= 7; ++split) {
      if (scope->ranges.empty()) break;
      const auto range = scope->ranges.find(name.substr(0, split));
      if (range == scope->ranges.end()) continue;
      if (name[split] == '0' && split + 1 != name.size()) continue;
      u32 number = 0;
      for (std::size_t i = split; i < name.size(); ++i) number = number * 10 + static_cast<u32>(name[i] - '0');
      if (number >= range->second.count) continue;
      auto [entry, fresh] = range->second.used.try_emplace(number, kNone);
      if (fresh) entry->second = add_register(*function_, range->second.type, name);
      return entry->second;
    }
  }
  return kNone;
}

u32 Parser::find_symbol(std::string_view name) {
  for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
    const auto found = scope->symbols.find(name);
    if (found != scope->symbols.end()) return found->second;
  }
  const auto found = module_symbols_.find(name);
  return found == module_symbols_.end() ? kNone : found->second;
}

void Parser::label(FunctionAst& f, std::string_view name, u32 line) {
  const u32 scope = scopes_.back().id;
  if (lexer_.peek().dot("branchtargets") || lexer_.peek().dot("calltargets") || lexer_.peek().dot("callprototype")) {
    BranchTable table;
    table.name = name;
    table.scope = scope;
    table.line = line;
    branch_table(f, table);
    f.tables.push_back(std::move(table));
    return;
  }
  auto& in_scope = labels_[scope].second;
  if (!in_scope.try_emplace(name, static_cast<u32>(f.labels.size())).second)
    fail(line, "label '" + std::string(name) + "' is defined twice in one scope");
  f.labels.push_back({name, scope, static_cast<u32>(f.code.size())});
}

void Parser::branch_table(FunctionAst& f, BranchTable& table) {
  if (accept_dot("callprototype")) {
    table.is_prototype = true;
    if (accept('(')) table.prototype.returns = param_list(f, true);
    identifier("'_' or a name");
    if (accept('(')) table.prototype.params = param_list(f, true);
    while (lexer_.peek().kind == Tok::dotted) lexer_.next();
  } else {
    lexer_.next();
    do table.names.push_back(identifier("a target"));
    while (accept(','));
  }
  expect(';', "after a table of targets");
}

void Parser::instruction(FunctionAst& f) {
  Instr in;
  in.loc = loc_;
  if (accept('@')) {
    in.guard_negated = accept('!');
    const Token name = lexer_.peek();
    in.guard = find_register(identifier("a predicate"));
    if (in.guard == kNone) throw PtxError(name.line, "unknown predicate " + describe(name));
    if (f.registers[in.guard].type != Type::pred) throw PtxError(name.line, describe(name) + " is not a predicate");
  }
  const Token opcode = lexer_.peek();
  in.line = opcode.line;
  in.opcode = identifier("an instruction");
  while (lexer_.peek().kind == Tok::dotted) in.modifiers.push_back(lexer_.next().text);
  if (in.modifiers.size() > 32) fail(in.line, "too many modifiers");
  if (in.opcode == "call") {
    call_operands(f, in);
  } else {
    while (!lexer_.peek().is(';')) {
      in.operands.push_back(operand(f, 0));
      if (in.operands.size() > 64) fail(in.line, "too many operands");
      if (!accept(',')) break;
    }
  }
  const Token end = lexer_.peek();
  if (!end.is(';')) fail(end.line, "expected ';' after '" + std::string(in.opcode) + "', got " + describe(end));
  in.text = std::string_view(opcode.text.data(), static_cast<std::size_t>(end.text.data() - opcode.text.data()));
  lexer_.next();
  if (f.code.size() >= (1u << 22)) fail("function '" + f.name + "' is too long");
  f.code.push_back(std::move(in));
  instr_scope_.push_back(scopes_.back().id);
}

// call{.uni} [(ret, ...),] target [, (arg, ...)] [, prototype or table];
void Parser::call_operands(FunctionAst& f, Instr& in) {
  auto arguments = [&] {
    Operand list;
    list.kind = Operand::args;
    while (!accept(')')) {
      list.items.push_back(operand(f, 1));
      if (list.items.size() > 4096) fail(in.line, "too many arguments");
      if (!accept(',') && !lexer_.peek().is(')')) fail("expected ',' between arguments, got " + describe(lexer_.peek()));
    }
    return list;
  };
  Operand empty;
  empty.kind = Operand::args;
  Operand returns = empty;
  if (accept('(')) {
    returns = arguments();
    expect(',', "after the results of a call");
  }
  in.operands.push_back(std::move(returns));
  in.operands.push_back(operand(f, 0));
  Operand params = empty;
  while (accept(',')) {
    if (accept('(')) params = arguments();
    else {
      in.operands.push_back(std::move(params));
      in.operands.push_back(operand(f, 0));
      return;
    }
  }
  in.operands.push_back(std::move(params));
}

Operand Parser::operand(FunctionAst& f, u32 depth) {
  Operand first = atom(f, depth);
  if (!accept('|')) return first;
  Operand pair;
  pair.kind = Operand::pair;
  pair.items.push_back(std::move(first));
  pair.items.push_back(atom(f, depth));
  return pair;
}

Operand Parser::atom(FunctionAst& f, u32 depth) {
  if (depth > 8) fail("operand nested too deeply");
  const Token& token = lexer_.peek();
  if (token.is('[')) return address(f, depth);
  if (token.is('{')) return vector(f, depth);
  if (token.is('!') || (token.is('-') && lexer_.peek(1).kind == Tok::identifier)) {  // - of a register: vmad alone
    lexer_.next();
    Operand o = atom(f, depth + 1);
    o.negated = !o.negated;
    return o;
  }
  if (token.kind == Tok::identifier) return named(f);
  return number();
}

Operand Parser::named(FunctionAst& f) {
  const Token token = lexer_.next();
  Operand o;
  o.text = token.text;
  if (token.text == "_") {
    o.kind = Operand::sink;
    return o;
  }
  o.index = find_register(token.text);
  if (o.index != kNone) {
    o.kind = Operand::reg;
    o.text = {};
    if (lexer_.peek().kind == Tok::dotted) o.text = lexer_.next().text;  // .b0, .h1, .x
    return o;
  }
  if (token.text[0] == '%' || token.text == "WARP_SZ") {
    std::string name(token.text);
    if (token.text[0] == '%' && lexer_.peek().kind == Tok::dotted) name += "." + std::string(lexer_.next().text);
    o.index = special_from_name(name);
    if (o.index == kNone) fail(token.line, "unknown register '" + name + "'");
    o.kind = Operand::special;
    return o;
  }
  o.index = find_symbol(token.text);
  if (o.index != kNone) {
    o.kind = Operand::symbol;
    if (accept('+')) o.value = constant_primary(0);
    return o;
  }
  o.kind = Operand::name;
  (void)f;
  return o;
}

Operand Parser::number() {
  Operand o;
  const Token token = lexer_.peek();
  const bool negative = token.is('-') && (lexer_.peek(1).kind == Tok::float32 || lexer_.peek(1).kind == Tok::float64);
  const Token value = lexer_.peek(negative ? 1 : 0);
  if (value.kind == Tok::float32 || value.kind == Tok::float64) {
    if (negative) lexer_.next();
    lexer_.next();
    o.kind = value.kind == Tok::float32 ? Operand::f32 : Operand::f64;
    o.value = value.value;
    if (negative) o.value ^= value.kind == Tok::float32 ? u64{0x80000000u} : u64{1} << 63;
    return o;
  }
  o.kind = Operand::imm;
  if (token.kind != Tok::integer && !token.is('-') && !token.is('+') && !token.is('~') && !token.is('('))
    fail("expected an operand, got " + describe(token));
  o.value = constant_primary(0);
  return o;
}

Operand Parser::address(FunctionAst& f, u32 depth) {
  expect('[', "at an address");
  Operand o;
  o.kind = Operand::address;
  o.items.push_back(atom(f, depth + 1));
  while (true) {
    if (accept('+')) o.value += constant_primary(0);
    else if (accept('-')) o.value -= constant_primary(0);
    else break;
  }
  while (accept(',')) o.items.push_back(atom(f, depth + 1));
  if (o.items.size() > 4) fail("too many parts in an address");
  expect(']', "after an address");
  return o;
}

Operand Parser::vector(FunctionAst& f, u32 depth) {
  expect('{', "at a vector");
  Operand o;
  o.kind = Operand::vector;
  while (!accept('}')) {
    o.items.push_back(atom(f, depth + 1));
    if (o.items.size() > 512) fail("vector is too long");
    if (!accept(',') && !lexer_.peek().is('}')) fail("expected ',' in a vector, got " + describe(lexer_.peek()));
  }
  return o;
}

u32 Parser::find_label(const FunctionAst& f, std::string_view name, u32 scope) const {
  (void)f;
  for (; scope != kNone; scope = scope_parent_[scope]) {
    const auto found = labels_[scope].second.find(name);
    if (found != labels_[scope].second.end()) return found->second;
  }
  return kNone;
}

// Labels may be used before they are defined, so names that were nothing else are looked up when the body has ended.
void Parser::resolve(FunctionAst& f) {
  for (std::size_t i = 0; i < f.code.size(); ++i) {
    for (Operand& o : f.code[i].operands) resolve_operand(f, o, instr_scope_[i], f.code[i].line);
  }
  for (BranchTable& table : f.tables) {
    for (std::string_view name : table.names) {
      const u32 label = find_label(f, name, table.scope);
      if (label != kNone) table.targets.push_back(f.labels[label].target);
      else if (!ast_.function_by_name.count(std::string(name)))
        fail(table.line, "unknown target '" + std::string(name) + "'");
    }
  }
}

void Parser::resolve_operand(FunctionAst& f, Operand& o, u32 scope, u32 line) {
  for (Operand& item : o.items) resolve_operand(f, item, scope, line);
  if (o.kind != Operand::name) return;
  const u32 label = find_label(f, o.text, scope);
  if (label != kNone) {
    o.kind = Operand::label;
    o.index = label;
    return;
  }
  for (std::size_t t = 0; t < f.tables.size(); ++t) {
    if (f.tables[t].name == o.text) {
      o.kind = Operand::table;
      o.index = static_cast<u32>(t);
      return;
    }
  }
  const auto function = ast_.function_by_name.find(std::string(o.text));
  if (function == ast_.function_by_name.end()) fail(line, "unknown name '" + std::string(o.text.substr(0, 80)) + "'");
  o.kind = Operand::func;
  o.index = function->second;
}

}  // namespace tkpy::emulator
