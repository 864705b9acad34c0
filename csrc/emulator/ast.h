// What the parser hands to the decoder: names resolved, nothing interpreted. String views point into Ast::source.
#pragma once

#include <map>
#include <memory>
#include <unordered_map>

#include "common.h"

namespace tkpy::emulator {

struct Operand {
  enum Kind : u8 {
    reg,      // index: register of the function
    special,  // index: special register (specials.h)
    imm,      // value: integer
    f32,      // value: bits
    f64,      // value: bits
    symbol,   // index: Ast::symbols, value: offset (mov r, sym+16)
    func,     // index: Ast::functions
    label,    // index: Body::labels
    table,    // index: Body::tables (.branchtargets) or prototypes
    address,  // items[0]: base (reg, symbol or imm), value: offset, items[1..]: TMA coordinates
    vector,   // items
    args,     // items: a parenthesised list of a call
    pair,     // items: a|b
    sink,     // _
    name,     // unresolved text: a label until the end of the function proves otherwise
  };
  Kind kind = imm;
  bool negated = false;          // !p
  u32 index = 0;
  u64 value = 0;
  std::string_view text;         // name: the text; reg: a selector such as b0 or h1
  std::vector<Operand> items;
};

struct Instr {
  u32 line = 0;       // of the PTX text
  u32 loc = 0;        // Ast::locs; 0 is "unknown"
  u32 guard = kNone;  // predicate register
  bool guard_negated = false;
  std::string_view opcode;                  // up to the first dot
  std::vector<std::string_view> modifiers;  // the rest, without dots
  std::vector<Operand> operands;
  std::string_view text;                    // the statement as written, without guard and semicolon
};

struct Register {
  Type type;
  std::string name;
};

// One parameter of a kernel or function. For .reg parameters `reg` is its register.
struct Param {
  std::string name;
  Type type = Type::b8;
  u64 count = 1;       // elements
  u32 align = 1;
  bool is_array = false;
  bool is_pointer = false;  // .ptr
  u32 reg = kNone;
  u32 symbol = kNone;
  u64 bytes() const { return count * type_bytes(type); }
};

struct Initialiser {
  u64 offset;
  std::string target;  // a symbol or function; empty for none
  u64 addend;
  u32 bytes;
  bool generic;
};

struct Symbol {
  std::string name;
  Space space = Space::global;
  Type type = Type::b8;
  u32 align = 1;
  u64 bytes = 0;
  bool is_extern = false;
  bool is_dynamic = false;  // .extern .shared x[]
  u32 function = kNone;     // owner, for variables declared in a body
  u32 line = 0;
  std::vector<u8> data;     // may be shorter than `bytes`; the rest is zero
  std::vector<Initialiser> links;
};

struct Label {
  std::string_view name;
  u32 scope;
  u32 target;  // instruction index
};

struct Prototype {
  std::vector<Param> returns, params;
};

struct BranchTable {
  std::string_view name;
  u32 scope = 0;
  u32 line = 0;
  bool is_prototype = false;
  std::vector<std::string_view> names;
  std::vector<u32> targets;  // instruction indices, after resolution
  Prototype prototype;
};

struct FunctionAst {
  std::string name;
  bool is_entry = false;
  bool has_body = false;
  u32 line = 0;
  std::vector<Param> returns, params;
  std::vector<Register> registers;
  std::vector<Label> labels;
  std::vector<BranchTable> tables;
  std::vector<Instr> code;
  u32 max_threads[3] = {0, 0, 0};  // .maxntid
  u32 required_threads[3] = {0, 0, 0};
  u32 required_cluster[3] = {0, 0, 0};
  u32 max_registers = 0;           // .maxnreg
  u32 min_ctas = 0;                // .minnctapersm
};

struct Loc {
  u32 file = 0;
  u32 line = 0;
};

struct Ast {
  std::string source;
  std::string version, target;
  std::vector<FunctionAst> functions;
  std::vector<Symbol> symbols;
  std::vector<Loc> locs{Loc{}};
  std::map<u32, std::string> files;
  std::unordered_map<std::string, u32> function_by_name;
};

// Throws PtxError. `source` is untrusted: sizes and nesting are bounded, every index checked.
std::unique_ptr<Ast> parse(std::string source);

}  // namespace tkpy::emulator
