# SPDX-License-Identifier: MIT
# Cross build for 64-bit Arm Linux on Debian or Ubuntu: clang-22 where installed and not turned off, otherwise gcc
# (apt packages gcc-aarch64-linux-gnu and g++-aarch64-linux-gnu; clang takes its libraries from them).
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)

find_program(LUTRA_CROSS_CLANG NAMES clang-22)
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES LUTRA_CROSS_CLANG)
if(LUTRA_CROSS_CLANG)
  set(CMAKE_C_COMPILER clang-22)
  set(CMAKE_CXX_COMPILER clang++-22)
  set(CMAKE_C_COMPILER_TARGET aarch64-linux-gnu)
  set(CMAKE_CXX_COMPILER_TARGET aarch64-linux-gnu)
else()
  set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
  set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
endif()

set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
