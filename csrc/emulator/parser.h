// The parser's own state, shared by parser.cpp (module level, declarations) and parser_body.cpp (statements, operands).
#pragma once

#include "ast.h"
#include "lexer.h"

namespace tkpy::emulator {

constexpr u32 kMaxNesting = 256;
constexpr u32 kMaxRegisters = 1u << 20;
constexpr u64 kMaxVariable = u64{1} << 30;
constexpr u32 kMaxParamBytes = 1u << 16;

class Parser {
 public:
  explicit Parser(Ast& ast) : ast_(ast), lexer_(ast.source) {}
  void run();

 private:
  // A body scope. Registers declared as `%r<100>` stay a range until one is used.
  struct Range {
    Type type;
    u32 count;
    std::unordered_map<u32, u32> used;  // number -> register
  };
  struct Scope {
    u32 id;
    std::unordered_map<std::string_view, u32> registers;
    std::unordered_map<std::string_view, Range> ranges;
    std::unordered_map<std::string_view, u32> symbols;
  };

  // tokens
  [[noreturn]] void fail(const std::string& what);
  [[noreturn]] void fail(u32 line, const std::string& what) { throw PtxError(line, what); }
  bool accept(char punct);
  bool accept_dot(std::string_view name);
  void expect(char punct, const char* where);
  std::string_view identifier(const char* what);
  u64 integer(const char* what);
  std::string describe(const Token& token);

  // module level
  void module_item();
  void directive_file();
  void skip_section();
  void function(bool is_entry, bool is_extern);
  void performance_directives(FunctionAst& f);
  std::vector<Param> param_list(FunctionAst& f, bool in_prototype);
  Param param(FunctionAst& f, bool in_prototype);
  void declare_params(FunctionAst& f);
  void triple(u32 (&out)[3]);

  // declarations
  bool accept_space(Space& space);
  void variables(Space space, bool is_extern, u32 function);
  void variable(Space space, bool is_extern, u32 function, Type type, u32 align, u32 vector);
  void initialiser(Symbol& s);
  void initialiser_list(Symbol& s, u64& at, u32 depth);
  void initialiser_item(Symbol& s, u64& at);
  void put(Symbol& s, u64& at, u64 bits, u32 bytes);
  u64 constant(u32 depth = 0);
  u64 constant_primary(u32 depth);
  void registers();

  // bodies
  void body(FunctionAst& f);
  void statement(FunctionAst& f);
  bool body_directive(FunctionAst& f);
  void directive_loc();
  void label(FunctionAst& f, std::string_view name, u32 line);
  void branch_table(FunctionAst& f, BranchTable& table);
  void instruction(FunctionAst& f);
  void call_operands(FunctionAst& f, Instr& in);
  Operand operand(FunctionAst& f, u32 depth);
  Operand atom(FunctionAst& f, u32 depth);
  Operand named(FunctionAst& f);
  Operand number();
  Operand address(FunctionAst& f, u32 depth);
  Operand vector(FunctionAst& f, u32 depth);
  u32 find_register(std::string_view name);
  u32 find_symbol(std::string_view name);
  u32 add_register(FunctionAst& f, Type type, std::string_view name);
  void resolve(FunctionAst& f);
  void resolve_operand(FunctionAst& f, Operand& o, u32 scope, u32 line);
  u32 find_label(const FunctionAst& f, std::string_view name, u32 scope) const;

  Ast& ast_;
  Lexer lexer_;
  FunctionAst* function_ = nullptr;
  u32 function_index_ = kNone;
  u32 loc_ = 0;
  u64 variable_bytes_ = 0;
  std::vector<Scope> scopes_;
  std::vector<u32> scope_parent_;  // per function; scope id -> enclosing scope id
  std::vector<u32> instr_scope_;   // scope of each instruction
  std::unordered_map<std::string_view, u32> module_symbols_;
  std::unordered_map<u64, u32> loc_index_;
  std::vector<std::pair<u32, std::unordered_map<std::string_view, u32>>> labels_;  // by scope id
};

}  // namespace tkpy::emulator
