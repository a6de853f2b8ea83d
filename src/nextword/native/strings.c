// The strings of a GGUF array: each is its length in 8 bytes, then its bytes. A vocabulary has a quarter of a million.
#include <stdint.h>
#include <string.h>

#include "cpu.h"

// Copy `count` strings that begin at data + start to `out` (of `size` - start bytes), a newline after each. Returns
// where the last one ends in data, and the bytes written in `written`; -1 if one reaches beyond `size` or holds a newline.
EXPORT int64_t nw_join_strings(const uint8_t *data, int64_t start, int64_t size, int64_t count, char *out, int64_t *written) {
    int64_t at = start, filled = 0;
    for (int64_t string = 0; string < count; string++) {
        uint64_t length;
        if (size - at < 8)
            return -1;
        memcpy(&length, data + at, 8);
        at += 8;
        if (length > (uint64_t)(size - at) || memchr(data + at, '\n', length))
            return -1;
        memcpy(out + filled, data + at, length);
        out[filled + (int64_t)length] = '\n';
        filled += (int64_t)length + 1;
        at += (int64_t)length;
    }
    *written = filled;
    return at;
}
