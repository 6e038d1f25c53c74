# SPDX-License-Identifier: MIT
# What a portable package brings of the compiler's own libraries: libgomp, which every thread of a process has
# to share and so cannot be linked in, and the licence of it and of libstdc++, which is linked in.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  execute_process(COMMAND ${CMAKE_C_COMPILER} -print-file-name=libgomp.so.1
                  OUTPUT_VARIABLE libgomp OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(GGML_OPENMP_ENABLED AND IS_ABSOLUTE "${libgomp}")
    file(REAL_PATH ${libgomp} libgomp)
    install(FILES ${libgomp} DESTINATION ${package}/lib RENAME libgomp.so.1 COMPONENT lutra)
  endif()
  string(REGEX MATCH "^[0-9]+" gcc "${CMAKE_CXX_COMPILER_VERSION}")
  foreach(text /usr/share/doc/gcc-${gcc}-base/copyright /usr/share/common-licenses/GPL-3) # Debian, Ubuntu
    if(EXISTS ${text})
      get_filename_component(name ${text} NAME)
      install(FILES ${text} DESTINATION ${package}/licenses RENAME gcc-${name}.txt COMPONENT lutra)
    else()
      message(WARNING "${text} is missing: give the package the licence of gcc's libraries before you pass it on")
    endif()
  endforeach()
endif()
