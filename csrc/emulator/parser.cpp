// Module level: directives, function headers, variables and their initialisers (PTX ISA 4 and 5).
#include "parser.h"

#include <algorithm>

namespace tkpy::emulator {

std::unique_ptr<Ast> parse(std::string source) {
  auto ast = std::make_unique<Ast>();
  ast->source = std::move(source);
  Parser(*ast).run();
  return ast;
}

void Parser::run() {
  while (lexer_.peek().kind != Tok::end) module_item();
  if (ast_.version.empty()) throw PtxError(1, "no .version directive: this is not PTX");
}

void Parser::fail(const std::string& what) { throw PtxError(lexer_.peek().line, what); }

std::string Parser::describe(const Token& token) {
  if (token.kind == Tok::end) return "the end of the text";
  return "'" + std::string(token.kind == Tok::dotted ? "." : "") + std::string(token.text.substr(0, 80)) + "'";
}

bool Parser::accept(char punct) {
  if (!lexer_.peek().is(punct)) return false;
  lexer_.next();
  return true;
}

bool Parser::accept_dot(std::string_view name) {
  if (!lexer_.peek().dot(name)) return false;
  lexer_.next();
  return true;
}

void Parser::expect(char punct, const char* where) {
  if (!accept(punct)) fail(std::string("expected '") + punct + "' " + where + ", got " + describe(lexer_.peek()));
}

std::string_view Parser::identifier(const char* what) {
  if (lexer_.peek().kind != Tok::identifier) fail(std::string("expected ") + what + ", got " + describe(lexer_.peek()));
  return lexer_.next().text;
}

u64 Parser::integer(const char* what) {
  if (lexer_.peek().kind != Tok::integer) fail(std::string("expected ") + what + ", got " + describe(lexer_.peek()));
  return lexer_.next().value;
}

void Parser::module_item() {
  const Token token = lexer_.peek();
  if (token.kind != Tok::dotted) fail("expected a directive at module level, got " + describe(token));
  bool is_extern = false;
  while (true) {
    if (accept_dot("extern")) is_extern = true;
    else if (!accept_dot("visible") && !accept_dot("weak") && !accept_dot("common")) break;
  }
  Space space;
  if (accept_dot("version")) {
    const Token number = lexer_.next();
    ast_.version = std::string(number.text);
    if (number.kind != Tok::float64) throw PtxError(number.line, "expected a version such as 8.0, got " + describe(number));
  } else if (accept_dot("target")) {
    do {
      const std::string_view name = identifier("a target");
      if (ast_.target.empty()) ast_.target = std::string(name);
    } while (accept(','));
  } else if (accept_dot("address_size")) {
    const u32 line = lexer_.peek().line;
    if (integer("an address size") != 64) throw PtxError(line, "only .address_size 64 is supported");
  } else if (accept_dot("file")) {
    directive_file();
  } else if (accept_dot("section")) {
    skip_section();
  } else if (lexer_.peek().dot("loc")) {
    lexer_.skip_line(lexer_.next().line);
  } else if (accept_dot("pragma") || accept_dot("alias")) {
    while (lexer_.peek().kind != Tok::end && !lexer_.peek().is(';')) lexer_.next();
    expect(';', "after .pragma or .alias");
  } else if (accept_dot("entry")) {
    function(true, is_extern);
  } else if (accept_dot("func")) {
    function(false, is_extern);
  } else if (accept_space(space)) {
    variables(space, is_extern, kNone);
  } else {
    fail("unknown directive " + describe(lexer_.peek()));
  }
}

void Parser::directive_file() {
  const u64 index = integer("a file number");
  const Token name = lexer_.next();
  if (name.kind != Tok::string) throw PtxError(name.line, "expected a file name, got " + describe(name));
  if (ast_.files.size() < 65536) ast_.files[static_cast<u32>(index)] = std::string(name.text);
  while (accept(',')) integer("a time stamp or size");
}

// DWARF sections carry only data directives; they end at the matching brace.
void Parser::skip_section() {
  while (lexer_.peek().kind != Tok::end && !lexer_.peek().is('{')) lexer_.next();
  expect('{', "after .section");
  u32 depth = 1;
  while (depth) {
    const Token token = lexer_.next();
    if (token.kind == Tok::end) throw PtxError(token.line, ".section without an end");
    depth += token.is('{');
    depth -= token.is('}');
  }
}

void Parser::triple(u32 (&out)[3]) {
  for (int i = 0; i < 3; ++i) out[i] = 1;
  for (int i = 0; i < 3; ++i) {
    out[i] = static_cast<u32>(integer("a size"));
    if (i == 2 || !accept(',')) break;
  }
}

void Parser::performance_directives(FunctionAst& f) {
  u32 ignored[3];
  while (lexer_.peek().kind == Tok::dotted) {
    if (accept_dot("maxntid")) triple(f.max_threads);
    else if (accept_dot("reqntid")) triple(f.required_threads);
    else if (accept_dot("reqnctapercluster")) triple(f.required_cluster);
    else if (accept_dot("maxnreg")) f.max_registers = static_cast<u32>(integer("a register count"));
    else if (accept_dot("minnctapersm")) f.min_ctas = static_cast<u32>(integer("a number of CTAs"));
    else if (accept_dot("maxclusterrank") || accept_dot("maxnctapersm")) triple(ignored);
    else if (accept_dot("explicitcluster") || accept_dot("blocksareclusters") || accept_dot("noreturn")) continue;
    else if (accept_dot("unique") || accept_dot("abi_preserve") || accept_dot("abi_preserve_control")) {
      if (lexer_.peek().kind == Tok::integer) lexer_.next();
    } else if (accept_dot("pragma")) {
      if (lexer_.next().kind != Tok::string) fail("expected a string after .pragma");
      accept(';');
    } else {
      fail("unknown directive " + describe(lexer_.peek()) + " in a function header");
    }
  }
}

Param Parser::param(FunctionAst& f, bool in_prototype) {
  Param p;
  const bool in_register = accept_dot("reg");
  if (!in_register && !accept_dot("param")) fail("expected .param or .reg, got " + describe(lexer_.peek()));
  u32 explicit_align = 0;
  while (lexer_.peek().kind == Tok::dotted) {
    const Token token = lexer_.next();
    if (token.text == "align") {
      explicit_align = static_cast<u32>(integer("an alignment"));
      if (p.is_pointer) explicit_align = 0;  // the alignment of what it points to
    } else if (token.text == "ptr") {
      p.is_pointer = true;
    } else if (type_from_name(token.text) != Type::none) {
      p.type = type_from_name(token.text);
    } else if (!(p.is_pointer && (token.text == "global" || token.text == "shared" || token.text == "const" ||
                                  token.text == "local"))) {
      fail(token.line, "unexpected " + describe(token) + " in a parameter");
    }
  }
  if (explicit_align > 4096 || (explicit_align & (explicit_align - 1))) fail("an alignment must be a power of two");
  if (type_bytes(p.type) == 0 || p.type == Type::pred) fail("a parameter needs a type");
  p.align = std::max(explicit_align, p.type == Type::pred ? 1u : type_bytes(p.type));
  const Token name = lexer_.next();
  if (name.kind != Tok::identifier) throw PtxError(name.line, "expected a parameter name, got " + describe(name));
  p.name = std::string(name.text);
  if (accept('[')) {
    p.is_array = true;
    p.count = lexer_.peek().is(']') ? 0 : constant();
    expect(']', "after an array size");
    if (p.count > kMaxParamBytes) fail(name.line, "parameter '" + p.name + "' is too large");
  }
  if (in_register && !in_prototype) {
    p.reg = add_register(f, p.type, name.text);
    scopes_.back().registers[name.text] = p.reg;
  }
  return p;
}

std::vector<Param> Parser::param_list(FunctionAst& f, bool in_prototype) {
  std::vector<Param> list;
  if (accept(')')) return list;
  u64 bytes = 0;
  do {
    list.push_back(param(f, in_prototype));
    bytes += list.back().bytes() + list.back().align;
    if (bytes > kMaxParamBytes || list.size() > 4096) fail("too many parameters");
  } while (accept(','));
  expect(')', "after parameters");
  return list;
}

// Parameters are variables: of the parameter block (kernels) or of the thread's frame (functions).
void Parser::declare_params(FunctionAst& f) {
  auto declare = [&](std::vector<Param>& list) {
    for (Param& p : list) {
      if (p.reg != kNone || p.name == "_") continue;
      Symbol s;
      s.name = p.name;
      s.space = f.is_entry ? Space::param : Space::frame;
      s.type = p.type;
      s.align = p.align;
      s.bytes = p.bytes();
      s.function = function_index_;
      s.line = f.line;
      p.symbol = static_cast<u32>(ast_.symbols.size());
      ast_.symbols.push_back(std::move(s));
    }
  };
  declare(f.returns);
  declare(f.params);
  for (const auto* list : {&f.returns, &f.params}) {
    for (const Param& p : *list) {
      if (p.symbol != kNone) scopes_.back().symbols[p.name] = p.symbol;  // the key lives as long as `f`
    }
  }
}

void Parser::function(bool is_entry, bool is_extern) {
  FunctionAst f;
  f.is_entry = is_entry;
  f.line = lexer_.peek().line;
  scopes_.clear();
  scopes_.push_back(Scope{0, {}, {}, {}});
  scope_parent_.assign(1, kNone);
  instr_scope_.clear();
  labels_.assign(1, {0, {}});
  while (accept_dot("attribute")) {
    expect('(', "after .attribute");
    while (!accept(')')) if (lexer_.next().kind == Tok::end) fail(".attribute without an end");
  }
  if (accept('(')) f.returns = param_list(f, false);
  f.name = std::string(identifier("a function name"));
  if (accept('(')) f.params = param_list(f, false);
  performance_directives(f);
  // A prototype and its definition share one index, so that calls resolve whichever came first.
  const auto known = ast_.function_by_name.find(f.name);
  const bool has_body = lexer_.peek().is('{');
  if (known != ast_.function_by_name.end()) {
    function_index_ = known->second;
    if (has_body && ast_.functions[function_index_].has_body) fail(f.line, "function '" + f.name + "' is defined twice");
  } else {
    function_index_ = static_cast<u32>(ast_.functions.size());
    ast_.function_by_name[f.name] = function_index_;
    ast_.functions.emplace_back();
    ast_.functions.back().name = f.name;
    ast_.functions.back().is_entry = is_entry;
  }
  if (!has_body) {
    expect(';', "after a function prototype");
    FunctionAst& slot = ast_.functions[function_index_];
    if (!slot.has_body) {
      f.registers.clear();
      slot = std::move(f);
    }
    return;
  }
  if (is_extern) fail(f.line, "an .extern function has no body");
  f.has_body = true;
  declare_params(f);
  function_ = &f;
  body(f);
  resolve(f);
  function_ = nullptr;
  scopes_.clear();
  ast_.functions[function_index_] = std::move(f);
  function_index_ = kNone;
}

bool Parser::accept_space(Space& space) {
  static constexpr std::pair<std::string_view, Space> kSpaces[] = {
      {"global", Space::global}, {"const", Space::constant}, {"shared", Space::shared},
      {"local", Space::local},   {"param", Space::frame},    {"shared::cta", Space::shared}};
  for (const auto& [name, value] : kSpaces) {
    if (accept_dot(name)) {
      space = value;
      return true;
    }
  }
  return false;
}

void Parser::variables(Space space, bool is_extern, u32 function) {
  Type type = Type::none;
  u32 align = 0;
  u32 vector = 1;
  while (lexer_.peek().kind == Tok::dotted) {
    const Token token = lexer_.next();
    if (token.text == "align") align = static_cast<u32>(integer("an alignment"));
    else if (token.text == "v2") vector = 2;
    else if (token.text == "v4") vector = 4;
    else if (token.text == "attribute") {
      expect('(', "after .attribute");
      while (!accept(')')) if (lexer_.next().kind == Tok::end) fail(".attribute without an end");
    } else if (type_from_name(token.text) != Type::none) type = type_from_name(token.text);
    else throw PtxError(token.line, "unexpected " + describe(token) + " in a variable declaration");
  }
  if (type_bytes(type) == 0 || type == Type::pred) fail("a variable needs a type");
  if (function == kNone && (space == Space::frame || space == Space::local)) fail(".param and .local variables belong in functions");
  if (align > 4096 || (align & (align - 1))) fail("an alignment must be a power of two, at most 4096");
  do variable(space, is_extern, function, type, align, vector);
  while (accept(','));
  expect(';', "after a variable");
}

void Parser::variable(Space space, bool is_extern, u32 function, Type type, u32 align, u32 vector) {
  Symbol s;
  const Token name = lexer_.peek();
  s.line = name.line;
  s.name = std::string(identifier("a variable name"));
  s.space = space;
  s.type = type;
  s.align = std::max(align, type_bytes(type) * vector);
  s.function = function;
  s.is_extern = is_extern;
  s.bytes = u64{type_bytes(type)} * vector;
  bool open = false;
  while (accept('[')) {
    if (accept(']')) {
      open = true;
      continue;
    }
    const u64 count = constant();
    if (count > kMaxVariable || s.bytes * count > kMaxVariable) fail("variable '" + s.name + "' is too large");
    s.bytes *= count;
    expect(']', "after an array size");
  }
  if (open && is_extern && space == Space::shared) s.is_dynamic = true;
  if (accept('=')) initialiser(s);
  if (open) s.bytes = s.data.size();
  variable_bytes_ += s.bytes;
  if (variable_bytes_ > 2 * kMaxVariable || ast_.symbols.size() > (1u << 22)) fail("variables take too much memory");
  const u32 index = static_cast<u32>(ast_.symbols.size());
  auto& table = function == kNone ? module_symbols_ : scopes_.back().symbols;
  const auto found = table.find(name.text);
  if (found != table.end() && !ast_.symbols[found->second].is_extern && !is_extern)
    throw PtxError(name.line, "variable '" + s.name + "' is declared twice");
  if (found != table.end() && is_extern) return;  // a repeated extern declaration
  table[name.text] = index;
  ast_.symbols.push_back(std::move(s));
}

void Parser::initialiser(Symbol& s) {
  u64 at = 0;
  if (lexer_.peek().is('{')) initialiser_list(s, at, 0);
  else initialiser_item(s, at);
}

void Parser::initialiser_list(Symbol& s, u64& at, u32 depth) {
  if (depth > 16) fail("initialiser nested too deeply");
  expect('{', "at an initialiser");
  while (!accept('}')) {
    if (lexer_.peek().is('{')) initialiser_list(s, at, depth + 1);
    else initialiser_item(s, at);
    if (!accept(',') && !lexer_.peek().is('}')) fail("expected ',' in an initialiser, got " + describe(lexer_.peek()));
  }
}

void Parser::put(Symbol& s, u64& at, u64 bits, u32 bytes) {
  if (at + bytes > kMaxVariable) fail("initialiser of '" + s.name + "' is too long");
  if (s.data.size() < at + bytes) s.data.resize(at + bytes);
  std::memcpy(s.data.data() + at, &bits, std::min<u32>(bytes, 8));
  at += bytes;
}

void Parser::initialiser_item(Symbol& s, u64& at) {
  const u32 bytes = type_bytes(s.type);
  const Token token = lexer_.peek();
  const bool negative = token.is('-') && (lexer_.peek(1).kind == Tok::float32 || lexer_.peek(1).kind == Tok::float64);
  const Token value = lexer_.peek(negative ? 1 : 0);
  if (value.kind == Tok::float32 || value.kind == Tok::float64) {
    if (negative) lexer_.next();
    lexer_.next();
    double d;
    if (value.kind == Tok::float32) {
      float f;
      const u32 bits = static_cast<u32>(value.value);
      std::memcpy(&f, &bits, 4);
      d = f;
    } else {
      std::memcpy(&d, &value.value, 8);
    }
    if (negative) d = -d;
    u64 bits = 0;
    if (bytes == 4) {
      const float f = static_cast<float>(d);
      std::memcpy(&bits, &f, 4);
      if (value.kind == Tok::float32 && !negative) bits = value.value;  // keeps a NaN's payload
    } else {
      std::memcpy(&bits, &d, 8);
    }
    put(s, at, bits, bytes);
    return;
  }
  if (token.kind == Tok::identifier) {
    Initialiser link{at, "", 0, bytes, false};
    if (token.text == "generic" && lexer_.peek(1).is('(')) {
      lexer_.next();
      lexer_.next();
      link.generic = true;
      link.target = std::string(identifier("a symbol"));
      expect(')', "after generic(symbol");
    } else {
      link.target = std::string(lexer_.next().text);
    }
    if (accept('+')) link.addend = constant();
    else if (accept('-')) link.addend = 0 - constant();
    s.links.push_back(std::move(link));
    put(s, at, 0, bytes);
    return;
  }
  put(s, at, constant(), bytes);
}

u64 Parser::constant(u32 depth) {
  if (depth > 64) fail("expression nested too deeply");
  u64 left = constant_primary(depth);
  while (true) {
    if (accept('+')) left += constant_primary(depth);
    else if (accept('*')) left *= constant_primary(depth);
    else if (lexer_.peek().is('-')) lexer_.next(), left -= constant_primary(depth);
    else return left;
  }
}

u64 Parser::constant_primary(u32 depth) {
  if (depth > 64) fail("expression nested too deeply");
  if (accept('-')) return 0 - constant_primary(depth + 1);
  if (accept('~')) return ~constant_primary(depth + 1);
  if (accept('!')) return !constant_primary(depth + 1);
  if (accept('+')) return constant_primary(depth + 1);
  if (accept('(')) {
    const u64 value = constant(depth + 1);
    expect(')', "in an expression");
    return value;
  }
  if (lexer_.peek().kind == Tok::identifier && lexer_.peek().text == "WARP_SZ") {
    lexer_.next();
    return kLanes;
  }
  return integer("a constant");
}

}  // namespace tkpy::emulator
