// Decoded code: one Op per instruction, its handler chosen once; registers are rows of 32 lanes.
//
// A row is 128 bytes (32 x 32 bits); 64-bit registers take two. Bit 31 of a row number says "constant pool". 8- and
// 16-bit registers live zero-extended in 32-bit rows. Predicates are 32-bit masks; slot 0 is always true, slot 1 is the
// carry flag of add.cc and its kin (PTX ISA 9.7.2).
#pragma once

#include "ast.h"
#include "device_heap.h"
#include "tensor/mma.h"
#include "tensor/tensor_map.h"
#include "tensor/wgmma.h"
#include "video.h"

namespace tkpy::emulator {

struct Exec;
struct Op;
using ExecFn = void (*)(Exec&, const Op&, u32 mask);

constexpr u32 kRowBytes = 128;
constexpr u32 kConstRow = 0x80000000u;
constexpr u32 kPredTrue = 0;
constexpr u32 kPredCarry = 1;
constexpr u32 kFirstPred = 2;

struct Op {
  ExecFn fn = nullptr;
  u32 guard = 0;  // predicate slot << 1 | negated
  u32 instr = 0;  // index into the function's code, for text, line and counters
  u32 d[2] = {0, 0};
  u32 s[5] = {0, 0, 0, 0, 0};
  u32 list = 0;   // first entry of Function::lists, for vectors
  u16 list_size = 0;
  u8 a = 0, b = 0, c = 0, e = 0;  // meaning belongs to the handler
  u32 f = 0;
  i64 imm = 0;
  u16 flops = 0;  // floating-point operations per active lane
  bool in_place = false;  // lane arithmetic: a destination row may be a source row
  bool helper = false;  // computes an operand of the next Op; not an instruction of its own
};

// How an address operand is formed; Op::e of memory operations.
enum class Base : u8 {
  row32,   // 32-bit register
  row64,   // 64-bit register
  fixed,   // imm alone
  param,   // kernel parameter block + imm
  frame,   // this call's slice of local memory + imm
};

// A place in an Op that holds a symbol's shared address, which depends on the kernel being launched.
struct Relocation {
  enum Kind : u8 { op_imm, constant } kind;
  u32 index;   // op or constant-pool entry
  u32 symbol;
};

struct Constant {
  u64 bits;
  bool wide;
};

// One argument or result of a call: either a register or a piece of the frame.
struct CallSlot {
  u32 reg_row = kNone;   // caller's row
  bool wide = false;
  u32 frame_offset = 0;
  u32 bytes = 0;
};

struct CallSite {
  u32 target = kNone;    // function; kNone: indirect through a register
  u32 target_row = kNone;
  std::vector<CallSlot> returns, params;
};

struct Slot {  // a formal parameter
  u32 reg_row = kNone;
  bool wide = false;
  u32 frame_offset = 0;
  u32 bytes = 0;
};

// A register whose every use is looked at (watch.h): an operand of wgmma, what is moved to or from one, or a register that
// is read before it is written on some path, and what is computed from it.
struct WatchedRegister {
  u32 vreg = 0;            // of FunctionAst::registers, or a temporary
  bool matrix = false;     // wgmma may be using it
  bool undefined = false;  // not written on some path from the function's start to a read
  bool unwritten = false;  // no instruction writes it
};

// How one Op uses watched registers, and the handler that does the work.
struct Watch {
  enum Rule : u8 {
    any,        // the result is undefined where a source is
    all,        // ... where all sources are: moves of parts of a register
    select,     // ... where the chosen source is
    move,       // mov: the register by another name
    condition,  // a predicate: not followed further
    need,       // memory, matrices, barriers: sources must be defined
    plain,      // results are defined whatever the sources are
  };
  ExecFn fn = nullptr;
  Rule rule = any;
  bool complete = true;  // every source is a watched register
  u32 first = 0, uses = 0, defs = 0;  // Function::watch_refs: sources, then results; kNone: not a watched one
};

struct Unmodelled {
  u32 line;
  std::string text, reason;
};

struct Function {
  const FunctionAst* ast = nullptr;
  u32 index = 0;
  std::vector<Op> ops;
  std::vector<u32> lists;
  std::vector<Constant> constants;
  std::vector<Relocation> relocations;
  std::vector<CallSite> calls;
  std::vector<tensor::MmaOp> mma_ops;
  std::vector<tensor::WgmmaOp> wgmma_ops;
  std::vector<WatchedRegister> watched;
  std::vector<Watch> watches;
  std::vector<u32> watch_refs;      // indices into `watched`
  std::vector<u32> watch_of_op;     // kNone: the Op touches no watched register; empty when no Op does
  u32 most_registers = 0;           // the largest operand of its setmaxnreg
  std::vector<VideoOp> video_ops;
  std::vector<u32> callees;
  bool has_indirect_call = false;
  bool talks_across_ctas = false;  // global atomics, strong accesses: CTAs then run in one host thread
  u32 rows32 = 0;    // 32-bit rows
  u32 rows64 = 0;    // 64-bit registers, two rows each, after the 32-bit ones
  u32 rows128 = 0;   // 128-bit registers, four rows each
  u32 preds = kFirstPred;
  u32 frame_bytes = 0;  // local variables and call parameters of one call
  std::vector<Slot> params, returns;
  std::vector<Unmodelled> unmodelled;
  u32 rows() const { return rows32 + 2 * rows64 + 4 * rows128; }
};

struct GlobalSymbol {
  u64 address = 0;  // global and const variables: host address
};

// A parsed and decoded module. Its global variables live here and keep their values from launch to launch.
struct Module {
  std::unique_ptr<Ast> ast;
  std::vector<Function> functions;      // parallel to ast->functions
  std::vector<u64> symbol_address;      // global and const: host address; others 0
  std::vector<u64> symbol_frame;        // local and frame symbols: offset within their function's frame
  std::vector<u64> param_offset;        // kernel parameter symbols: offset in the parameter block
  std::vector<u64> storage;             // backing of global and const variables
  struct Region {
    u64 address, bytes;
    bool writable;
    std::string name;
  };
  std::vector<Region> regions;          // one per global or const variable
  std::unique_ptr<DeviceHeap> heap;     // where a function calls malloc or free
  u32 param_bytes(u32 function) const;
};

std::unique_ptr<Module> load_module(std::string ptx);

}  // namespace tkpy::emulator
