# The host side of kernels: csrc/runtime and every csrc/kernels/<op>/launch.cpp, as the library tkpy_runtime. Needs the
# target `emulator`; no CUDA: libcuda is opened at run time.
get_filename_component(TKPY_ROOT "${CMAKE_CURRENT_LIST_DIR}/.." ABSOLUTE)

file(GLOB tkpy_launchers CONFIGURE_DEPENDS "${TKPY_ROOT}/csrc/kernels/*/launch.cpp")
add_library(tkpy_runtime STATIC "${TKPY_ROOT}/csrc/runtime/machine.cpp" "${TKPY_ROOT}/csrc/runtime/driver_machine.cpp"
                                "${TKPY_ROOT}/csrc/runtime/emulator_machine.cpp" ${tkpy_launchers})
target_compile_features(tkpy_runtime PUBLIC cxx_std_20)
set_target_properties(tkpy_runtime PROPERTIES POSITION_INDEPENDENT_CODE ON)
target_compile_options(tkpy_runtime PRIVATE -Wall -Wextra)
target_include_directories(tkpy_runtime PUBLIC "${TKPY_ROOT}/csrc")
target_link_libraries(tkpy_runtime PUBLIC emulator ${CMAKE_DL_LIBS})
