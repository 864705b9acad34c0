# The host side of kernels. tkpy_runtime: csrc/runtime, needs the target `emulator`; no CUDA: libcuda is opened at run time.
# tkpy_launchers: every csrc/kernels/<op>/*.cpp, objects and not a library, since each registers itself (runtime/launcher.h)
# and a linker takes from a library only what something asks for.
get_filename_component(TKPY_ROOT "${CMAKE_CURRENT_LIST_DIR}/.." ABSOLUTE)

file(GLOB tkpy_runtime_sources CONFIGURE_DEPENDS "${TKPY_ROOT}/csrc/runtime/*.cpp")
add_library(tkpy_runtime STATIC ${tkpy_runtime_sources})
target_compile_features(tkpy_runtime PUBLIC cxx_std_20)
target_compile_options(tkpy_runtime PRIVATE ${FLAGS})
target_include_directories(tkpy_runtime PUBLIC "${TKPY_ROOT}/csrc")
target_link_libraries(tkpy_runtime PUBLIC emulator ${CMAKE_DL_LIBS})

file(GLOB tkpy_launcher_sources CONFIGURE_DEPENDS "${TKPY_ROOT}/csrc/kernels/*/*.cpp")
add_library(tkpy_launchers OBJECT ${tkpy_launcher_sources})
target_compile_options(tkpy_launchers PRIVATE ${FLAGS})
target_link_libraries(tkpy_launchers PUBLIC tkpy_runtime)
