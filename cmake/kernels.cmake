# Kernels: every csrc/kernels/<op>/*.cu, csrc/microbench/*.cu and csrc/examples/*.cu becomes a module, <name>.ptx,
# <name>.cubin and <name>.json in TKPY_KERNEL_OUTPUT, installed to tkpy/kernels. kernel.cu is called after its folder,
# <op>; another file there <op>_<stem>; a microbenchmark microbench_<stem>; an example by its stem. One command a module, in parallel: cmake/compile_kernel.py. Without nvcc the
# configuration succeeds, and toolchain.json says why there are no kernels.
find_package(Python COMPONENTS Interpreter REQUIRED)

get_filename_component(TKPY_ROOT "${CMAKE_CURRENT_LIST_DIR}/.." ABSOLUTE)
set(TKPY_KERNEL_OUTPUT "${CMAKE_CURRENT_BINARY_DIR}/tkpy/kernels" CACHE PATH "Where compiled kernels go")
set(TKPY_COMPILE_KERNEL "${TKPY_ROOT}/cmake/compile_kernel.py")
file(MAKE_DIRECTORY "${TKPY_KERNEL_OUTPUT}")

execute_process(COMMAND "${Python_EXECUTABLE}" "${TKPY_COMPILE_KERNEL}" --toolchain
                OUTPUT_VARIABLE tkpy_toolchain RESULT_VARIABLE tkpy_toolchain_status OUTPUT_STRIP_TRAILING_WHITESPACE)
file(GENERATE OUTPUT "${TKPY_KERNEL_OUTPUT}/toolchain.json" CONTENT "${tkpy_toolchain}\n")
set(tkpy_kernel_files "${TKPY_KERNEL_OUTPUT}/toolchain.json")

if(NOT tkpy_toolchain_status EQUAL 0)
  message(STATUS "tkpy kernels: not built: nvcc not found")
else()
  message(STATUS "tkpy kernels: ${tkpy_toolchain}")
  option(TKPY_MICROBENCH "Build the kernels of `tkpy bench micro`: about a minute of one core" ON)
  file(GLOB tkpy_kernel_sources CONFIGURE_DEPENDS "${TKPY_ROOT}/csrc/kernels/*/*.cu" "${TKPY_ROOT}/csrc/examples/*.cu")
  if(TKPY_MICROBENCH)
    file(GLOB tkpy_microbenchmarks CONFIGURE_DEPENDS "${TKPY_ROOT}/csrc/microbench/*.cu")
    list(APPEND tkpy_kernel_sources ${tkpy_microbenchmarks})
  endif()
  set(TKPY_KERNEL_SOURCES "" CACHE STRING "Kernels to build; empty: all of them")
  if(NOT TKPY_KERNEL_SOURCES)
    set(TKPY_KERNEL_SOURCES "${tkpy_kernel_sources}")
  endif()
  execute_process(COMMAND "${Python_EXECUTABLE}" "${TKPY_COMPILE_KERNEL}" --names ${TKPY_KERNEL_SOURCES}
                  OUTPUT_VARIABLE names OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  foreach(source name IN ZIP_LISTS TKPY_KERNEL_SOURCES names)
    set(stem "${TKPY_KERNEL_OUTPUT}/${name}")
    set(depfile "${CMAKE_CURRENT_BINARY_DIR}/${name}.kernel.d")
    add_custom_command(
      OUTPUT "${stem}.json" "${stem}.ptx" "${stem}.cubin"
      COMMAND "${Python_EXECUTABLE}" "${TKPY_COMPILE_KERNEL}" "${source}" --name "${name}" --out "${TKPY_KERNEL_OUTPUT}"
              --depfile "${depfile}"
      DEPENDS "${source}" "${TKPY_COMPILE_KERNEL}" "${TKPY_KERNEL_OUTPUT}/toolchain.json"
      DEPFILE "${depfile}"
      COMMENT "kernel ${name}"
      VERBATIM)
    list(APPEND tkpy_kernel_files "${stem}.ptx" "${stem}.cubin" "${stem}.json")
    if(source MATCHES "/(wkv5|short_conv|rows)/|/wgmma_")
      list(APPEND tkpy_slow_kernels "${stem}.json")
    endif()
  endforeach()
  # Those that take longest begin first, or one core would end with them alone (wkv5_backward takes half a minute): ninja
  # 1.12 and newer begin with what has most steps before it, and these have one more. The order of sources says nothing.
  if(tkpy_slow_kernels)
    set(stamp "${CMAKE_CURRENT_BINARY_DIR}/slow_kernels.stamp")
    add_custom_command(OUTPUT "${stamp}" DEPENDS ${tkpy_slow_kernels} COMMAND "${CMAKE_COMMAND}" -E touch "${stamp}" VERBATIM)
    set(tkpy_slow_stamp "${stamp}")
  endif()
endif()

add_custom_target(tkpy_kernels ALL DEPENDS ${tkpy_kernel_files} ${tkpy_slow_stamp})
install(FILES ${tkpy_kernel_files} DESTINATION tkpy/kernels COMPONENT kernels)
