# SPDX-License-Identifier: MIT
"""The rows of the CB types in llama.cpp's enums and switches.

Written by cpu_kernels/formats/generate.py from cb.toml; do not edit.
"""

# enum ggml_type
GGML_TYPES = """\
        GGML_TYPE_CB2     = 402, // Lutra: see cpu_kernels/formats/cb.h
        GGML_TYPE_CB3     = 403,
        GGML_TYPE_CB4     = 404,
        GGML_TYPE_CB5     = 405,
        GGML_TYPE_CB6     = 406,
        GGML_TYPE_CB25    = 407,
        GGML_TYPE_CB2_64  = 422,
        GGML_TYPE_CB3_64  = 423,
        GGML_TYPE_CB4_64  = 424,
        GGML_TYPE_CB5_64  = 425,
        GGML_TYPE_CB6_64  = 426,
        GGML_TYPE_CB25_64 = 427,
        GGML_TYPE_COUNT   = 428,
"""

# enum llama_ftype
FILE_TYPES = """\
        LLAMA_FTYPE_MOSTLY_CB2           = 402, // Lutra
        LLAMA_FTYPE_MOSTLY_CB3           = 403, // Lutra
        LLAMA_FTYPE_MOSTLY_CB4           = 404, // Lutra
        LLAMA_FTYPE_MOSTLY_CB5           = 405, // Lutra
        LLAMA_FTYPE_MOSTLY_CB6           = 406, // Lutra
        LLAMA_FTYPE_MOSTLY_CB25          = 407, // Lutra
"""

# the name of each file type
FILE_TYPE_NAMES = """\
        case LLAMA_FTYPE_MOSTLY_CB2:       name = LLAMA_FTYPE_PREFIX "CB2"; break;
        case LLAMA_FTYPE_MOSTLY_CB3:       name = LLAMA_FTYPE_PREFIX "CB3"; break;
        case LLAMA_FTYPE_MOSTLY_CB4:       name = LLAMA_FTYPE_PREFIX "CB4"; break;
        case LLAMA_FTYPE_MOSTLY_CB5:       name = LLAMA_FTYPE_PREFIX "CB5"; break;
        case LLAMA_FTYPE_MOSTLY_CB6:       name = LLAMA_FTYPE_PREFIX "CB6"; break;
        case LLAMA_FTYPE_MOSTLY_CB25:      name = LLAMA_FTYPE_PREFIX "CB25"; break;
"""

# the file type when most tensors have this type
FILE_TYPE_OF_TYPE = """\
            case GGML_TYPE_CB2_64:
            case GGML_TYPE_CB2:     ftype = LLAMA_FTYPE_MOSTLY_CB2;     break;
            case GGML_TYPE_CB3_64:
            case GGML_TYPE_CB3:     ftype = LLAMA_FTYPE_MOSTLY_CB3;     break;
            case GGML_TYPE_CB4_64:
            case GGML_TYPE_CB4:     ftype = LLAMA_FTYPE_MOSTLY_CB4;     break;
            case GGML_TYPE_CB5_64:
            case GGML_TYPE_CB5:     ftype = LLAMA_FTYPE_MOSTLY_CB5;     break;
            case GGML_TYPE_CB6_64:
            case GGML_TYPE_CB6:     ftype = LLAMA_FTYPE_MOSTLY_CB6;     break;
            case GGML_TYPE_CB25_64:
            case GGML_TYPE_CB25:    ftype = LLAMA_FTYPE_MOSTLY_CB25;    break;
"""
