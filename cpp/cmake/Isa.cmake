# SPDX-License-Identifier: Apache-2.0
# The only place that knows instruction-set flags. One row: name, architecture, gcc/clang flags, MSVC flags.
set(GOSSAMER_ISA_avx2   "-mavx2;-mfma;-mf16c;-mbmi;-mbmi2;-mlzcnt;-mpopcnt")
set(GOSSAMER_ISA_avx512 "${GOSSAMER_ISA_avx2};-mavx512f;-mavx512bw;-mavx512dq;-mavx512vl;-mavx512cd")
# Part of every AArch64. GCC would move the loads of a panel's step to its begin and then be short of registers.
set(GOSSAMER_ISA_neon   "-fno-schedule-insns")

# The levels of this architecture, from the weakest to the strongest.
set(GOSSAMER_ISAS baseline)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  list(APPEND GOSSAMER_ISAS avx2 avx512)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$")
  list(APPEND GOSSAMER_ISAS neon)
endif()

# Appends the objects of a level to the list `objects`.
function(gossamer_add_isa name gnu msvc objects)
  add_library(gossamer_isa_${name} OBJECT cpp/isa/${name}.cpp)
  target_include_directories(gossamer_isa_${name} PRIVATE cpp)
  target_link_libraries(gossamer_isa_${name} PRIVATE gossamer_flags)
  # No LTO: an inline function compiled with these flags must never be merged into code for every CPU.
  set_target_properties(gossamer_isa_${name} PROPERTIES INTERPROCEDURAL_OPTIMIZATION OFF)
  if(MSVC)
    target_compile_options(gossamer_isa_${name} PRIVATE ${msvc})
  else()
    # Without trapping maths both sides of a select may be computed, so loops with one become vectors; no result changes.
    target_compile_options(gossamer_isa_${name} PRIVATE ${gnu} -fno-lto -fno-exceptions -fno-math-errno
                                                        -fno-trapping-math)
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
      # Its own AVX-512 header sets this one off (PR 105593).
      target_compile_options(gossamer_isa_${name} PRIVATE -Wno-maybe-uninitialized)
    endif()
  endif()
  set(${objects} ${${objects}} $<TARGET_OBJECTS:gossamer_isa_${name}> PARENT_SCOPE)
endfunction()

# The objects of all levels, in the list `objects`, for a target that chooses among them.
function(gossamer_add_isas target objects)
  gossamer_add_isa(baseline "" "" found)
  if("avx2" IN_LIST GOSSAMER_ISAS)
    gossamer_add_isa(avx2 "${GOSSAMER_ISA_avx2}" "/arch:AVX2" found)
    gossamer_add_isa(avx512 "${GOSSAMER_ISA_avx512}" "/arch:AVX512" found)
    target_compile_definitions(${target} PRIVATE GOSSAMER_X86=1)
  elseif("neon" IN_LIST GOSSAMER_ISAS)
    gossamer_add_isa(neon "$<$<CXX_COMPILER_ID:GNU>:${GOSSAMER_ISA_neon}>" "" found)
    target_compile_definitions(${target} PRIVATE GOSSAMER_AARCH64=1)
  endif()
  set(${objects} ${found} PARENT_SCOPE)
endfunction()
