// AdamW on 8-bit moments and 16-bit weights with a remainder: one step, and the way to fp32 and back.
//
// A block is a run of elements of one parameter with one scale for each moment. Arithmetic is fp32 and the same on
// every processor: it is compiled without fused multiply-add. See compressed_adamw.py.

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#ifdef __F16C__
#include <immintrin.h>
#endif

namespace {

constexpr int64_t LARGEST = 1024;    // elements of a block
constexpr int32_t ONE = 0x3F800000;  // the bits of 1.0f
constexpr float LEAST = 1e-36f;      // below it a block's moments are zero: 1 / scale must be finite

inline int32_t bits_of(float value) {
    int32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

inline float float_of(int32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline int32_t magnitude(float value) { return bits_of(value) & 0x7FFFFFFF; }

// Companding: a square root that is linear between powers of two, the fourth root made of two of them, and their exact
// inverses.
inline float root(float value) { return float_of((bits_of(value) >> 1) + ONE / 2); }
inline float fourth_root(float value) { return float_of((bits_of(value) >> 2) + (ONE / 2 + ONE / 4)); }
inline float square(float value) {
    return float_of(static_cast<int32_t>(static_cast<uint32_t>(bits_of(value)) * 2 - ONE));
}
inline float fourth_power(float value) {
    return float_of(static_cast<int32_t>(static_cast<uint32_t>(bits_of(value)) * 4 - 3u * ONE));
}

// To round is to add a number from 0 to 1 and drop the fraction. That number is a half, which gives the nearest, or, in
// a step, one of a sequence that fills the interval evenly from a random start: then a change smaller than a code's
// step is made as often as it is due, where the nearest would lose it each time.
struct Rounding {
    uint32_t first = 1u << 31, second = 1u << 31, by_first = 0, by_second = 0;  // start and stride, in units of 2^-32
};

inline uint32_t hash(uint32_t x) {  // Wellons' lowbias32
    x = (x ^ (x >> 16)) * 0x7FEB352Du;
    x = (x ^ (x >> 15)) * 0x846CA68Bu;
    return x ^ (x >> 16);
}

inline Rounding dithered(uint32_t seed, uint32_t from) {  // strides: 1 / g and 1 / g^2 of the plastic number g
    Rounding rounding{hash(seed), hash(seed + 1), 0xC13FA9A9u, 0x91E10DA5u};
    rounding.first += from * rounding.by_first;
    rounding.second += from * rounding.by_second;
    return rounding;
}

inline int32_t rounded(float value, uint32_t add, int32_t most) {  // of a value that is not negative
    return std::min(static_cast<int32_t>(value + float_of(static_cast<int32_t>(add >> 9) | ONE)) - 1, most);
}

// Numbers of 16 bits

inline float half_to_float(uint16_t half) {
    uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 0x3FF;
    if (exponent == 31) return float_of(static_cast<int32_t>(sign | 0x7F800000 | fraction << 13));
    float value = exponent ? float_of(static_cast<int32_t>((exponent + 112) << 23 | fraction << 13))
                           : static_cast<float>(fraction) * 0x1p-24f;
    return float_of(bits_of(value) | static_cast<int32_t>(sign));
}

inline uint16_t float_to_half(float value) {  // to the nearest, ties to even
    uint32_t bits = static_cast<uint32_t>(bits_of(value)), sign = bits >> 16 & 0x8000;
    bits &= 0x7FFFFFFF;
    if (bits > 0x7F800000) return static_cast<uint16_t>(sign | 0x7E00 | (bits >> 13 & 0x3FF));
    if (bits >= 0x477FF000) return static_cast<uint16_t>(sign | 0x7C00);
    if (bits < 0x38800000)
        return static_cast<uint16_t>(
            sign | static_cast<uint32_t>(std::nearbyintf(float_of(static_cast<int32_t>(bits)) * 0x1p24f)));
    return static_cast<uint16_t>(sign | (bits - 0x38000000 + 0xFFF + (bits >> 13 & 1)) >> 13);
}

struct BFloat16 {
    static void widen(const uint16_t* from, float* to, int64_t n) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) to[i] = float_of(static_cast<int32_t>(static_cast<uint32_t>(from[i]) << 16));
    }
};

struct Half {
    static void widen(const uint16_t* from, float* to, int64_t n) {
        int64_t i = 0;
#ifdef __F16C__
        for (; i + 8 <= n; i += 8)
            _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
#endif
        for (; i < n; i++) to[i] = half_to_float(from[i]);
    }
    // The nearest, and what it is in fp32.
    static void narrow(const float* from, uint16_t* to, float* back, int64_t n) {
        int64_t i = 0;
#ifdef __F16C__
        for (; i + 8 <= n; i += 8) {
            __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), half);
            _mm256_storeu_ps(back + i, _mm256_cvtph_ps(half));
        }
#endif
        for (; i < n; i++) back[i] = half_to_float(to[i] = float_to_half(from[i]));
    }
};

struct Float {
    static void widen(const float* from, float* to, int64_t n) { std::memcpy(to, from, 4 * static_cast<size_t>(n)); }
};

// Master weights: a 16-bit weight, here as fp32, and a remainder of 16 bits or 8

template <class Weight, class Remainder>
struct Master;

template <class Remainder>
struct Master<BFloat16, Remainder> {  // the bits of the fp32 number less those of the weight; ties round upwards
    static constexpr int DROPPED = 16 - 8 * sizeof(Remainder);
    static float join(float weight, Remainder remainder) {
        return float_of(bits_of(weight) +
                        static_cast<int32_t>(static_cast<uint32_t>(static_cast<int32_t>(remainder)) << DROPPED));
    }
    static void split(const float* master, uint16_t* weight, Remainder* remainder, Rounding rounding, int64_t n) {
        uint32_t add = rounding.first;
#pragma omp simd linear(add : rounding.by_first)
        for (int64_t i = 0; i < n; i++) {
            uint32_t bits = static_cast<uint32_t>(bits_of(master[i]));
            if (DROPPED) bits += add >> (32 - DROPPED) % 32;
            weight[i] = static_cast<uint16_t>((bits + 0x8000u) >> 16);
            remainder[i] = static_cast<Remainder>(static_cast<int16_t>(bits) >> DROPPED);
            add += rounding.by_first;
        }
    }
};

template <class Remainder>
struct Master<Half, Remainder> {  // as above from BOUND on; below, where fp16 has steps of 2^-24, in units of 2^-40
    static constexpr bool WIDE = sizeof(Remainder) == 2;
    static constexpr int LIMIT = WIDE ? 32767 : 127, DROPPED = WIDE ? 0 : 5, DROPPED_BELOW = WIDE ? 0 : 8;
    static constexpr int32_t BOUND = WIDE ? 0x37800000 : 0x39000000, INFINITE = 0x7F800000;  // 2^-16, 2^-13
    static float join(float weight, Remainder remainder) {
        float above = float_of(bits_of(weight) + remainder * (1 << DROPPED));
        float below = weight + static_cast<float>(remainder * (1 << DROPPED_BELOW)) * 0x1p-40f;
        return magnitude(weight) >= BOUND ? above : below;
    }
    static void split(const float* master, uint16_t* weight, Remainder* remainder, Rounding rounding, int64_t n) {
        float high[LARGEST];
        Half::narrow(master, weight, high, n);
        uint32_t add = rounding.first;
#pragma omp simd linear(add : rounding.by_first)
        for (int64_t i = 0; i < n; i++) {
            int32_t above = bits_of(master[i]) - bits_of(high[i]), large = magnitude(high[i]);
            float scaled = large >= BOUND ? 32768.5f : (master[i] - high[i]) * 0x1p40f + 32768.5f;
            int32_t rest = static_cast<int32_t>(scaled) - 32768;  // the nearest: what is truncated is positive
            if (!WIDE) rest = (rest + static_cast<int32_t>(add >> 24)) >> DROPPED_BELOW;
            if (!WIDE) above = (above + static_cast<int32_t>(add >> 27)) >> DROPPED;
            rest = large >= INFINITE ? 0 : large >= BOUND ? above : rest;
            remainder[i] = static_cast<Remainder>(std::min(std::max(rest, -LIMIT), LIMIT));
            add += rounding.by_first;
        }
    }
};

// Moments: codes relative to the largest of their block, m by its root, v by its fourth root

inline float decode_first(int8_t code, float scale) {
    float y = static_cast<float>(code) * (1.0f / 127.0f);
    float value = float_of(bits_of(square(y) * scale) | (bits_of(y) & INT32_MIN));  // `square` drops the sign
    return code == 0 ? 0.0f : value;
}

inline float decode_second(uint8_t code, float scale) {
    float value = fourth_power(static_cast<float>(code) * (1.0f / 255.0f)) * scale;
    return code == 0 ? 0.0f : value;
}

struct State {  // of a sub-group
    uint16_t* weight;
    void* remainder;
    int8_t* first;
    uint8_t* second;
    float *first_scale, *second_scale;
};

inline float scale_of(int32_t largest) { return float_of(largest) >= LEAST ? float_of(largest) : 0.0f; }

// `largest`: the bits of the block's largest magnitudes.
inline void encode_moments(const State& state, const float* m, const float* v, int32_t largest_m, int32_t largest_v,
                           Rounding rounding, int64_t at, int64_t n, int64_t block) {
    int8_t* first = state.first + at;
    uint8_t* second = state.second + at;
    const float scale_m = state.first_scale[block] = scale_of(largest_m);
    const float scale_v = state.second_scale[block] = scale_of(largest_v);
    const float times_m = scale_m > 0 ? 1 / scale_m : 0.0f, times_v = scale_v > 0 ? 1 / scale_v : 0.0f;
    const int32_t least = scale_v > 0 ? 1 : 0;
    uint32_t add_m = rounding.first, add_v = rounding.second;
#pragma omp simd linear(add_m : rounding.by_first) linear(add_v : rounding.by_second)
    for (int64_t i = 0; i < n; i++) {
        int32_t code = rounded(root(float_of(magnitude(m[i])) * times_m) * 127.0f, add_m, 127),
                sign = bits_of(m[i]) >> 31;
        first[i] = static_cast<int8_t>((code ^ sign) - sign);
        code = rounded(fourth_root(v[i] * times_v) * 255.0f, add_v, 255);
        // A second moment never becomes zero: the update would be m / eps.
        second[i] = static_cast<uint8_t>(v[i] > 0 ? std::max(code, least) : 0);
        add_m += rounding.by_first;
        add_v += rounding.by_second;
    }
}

struct Step {
    float gradient_scale, keep1, add1, keep2, add2, eps, keep, rate, correction;
};

template <class Weight, class Remainder, class Gradient, class Number>
void step_block(const State& state, const Number* gradient, int64_t at, int64_t n, int64_t block, Rounding rounding,
                const Step& step) {
    alignas(64) float g[LARGEST], m[LARGEST], v[LARGEST], master[LARGEST];
    auto* remainder = static_cast<Remainder*>(state.remainder) + at;
    const int8_t* first = state.first + at;
    const uint8_t* second = state.second + at;
    const float scale_m = state.first_scale[block], scale_v = state.second_scale[block];
    const Step s = step;
    Gradient::widen(gradient + at, g, n);
    Weight::widen(state.weight + at, master, n);
    int32_t largest_m = 0, largest_v = 0;
#pragma omp simd reduction(max : largest_m, largest_v)
    for (int64_t i = 0; i < n; i++) {
        float scaled = g[i] * s.gradient_scale;
        float new_m = s.keep1 * decode_first(first[i], scale_m) + s.add1 * scaled;
        float new_v = s.keep2 * decode_second(second[i], scale_v) + s.add2 * (scaled * scaled);
        float change = new_m / (std::sqrt(new_v) * s.correction + s.eps);
        master[i] = Master<Weight, Remainder>::join(master[i], remainder[i]) * s.keep - s.rate * change;
        m[i] = new_m;
        v[i] = new_v;
        largest_m = std::max(largest_m, magnitude(new_m));
        largest_v = std::max(largest_v, bits_of(new_v));
    }
    encode_moments(state, m, v, largest_m, largest_v, rounding, at, n, block);
    Master<Weight, Remainder>::split(master, state.weight + at, remainder, rounding, n);
}

template <class Weight, class Remainder>
void encode_block(const State& state, const float* master, const float* m, const float* v, int64_t at, int64_t n,
                  int64_t block) {
    int32_t largest_m = 0, largest_v = 0;
    for (int64_t i = at; i < at + n; i++) {
        largest_m = std::max(largest_m, magnitude(m[i]));
        largest_v = std::max(largest_v, bits_of(v[i]));
    }
    encode_moments(state, m + at, v + at, largest_m, largest_v, Rounding{}, at, n, block);
    Master<Weight, Remainder>::split(master + at, state.weight + at, static_cast<Remainder*>(state.remainder) + at,
                                     Rounding{}, n);
}

template <class Weight, class Remainder>
void decode_block(const State& state, float* master, float* m, float* v, int64_t at, int64_t n, int64_t block) {
    Weight::widen(state.weight + at, master + at, n);
    for (int64_t i = at; i < at + n; i++) {
        master[i] = Master<Weight, Remainder>::join(master[i], static_cast<Remainder*>(state.remainder)[i]);
        m[i] = decode_first(state.first[i], state.first_scale[block]);
        v[i] = decode_second(state.second[i], state.second_scale[block]);
    }
}

struct Segment {  // a parameter's share: place in the buffer, size, first element in the parameter, its number, block
    int64_t at, numel, first, number, block;
};

// Blocks are counted from each parameter's beginning, so that a share may begin and end within one.
template <class Do>
void for_blocks(const Segment* segments, int64_t count, int64_t size, Do each) {
#pragma omp parallel
    for (int64_t i = 0; i < count; i++) {
        const Segment segment = segments[i];
        const int64_t before = segment.first % size, blocks = (before + segment.numel + size - 1) / size;
#pragma omp for schedule(static) nowait
        for (int64_t b = 0; b < blocks; b++) {
            int64_t start = std::max<int64_t>(b * size - before, 0),
                    stop = std::min((b + 1) * size - before, segment.numel);
            each(segment, segment.first + start, segment.at + start, stop - start, segment.block + b);
        }
    }
}

template <class Do>
void with_types(bool bf16, int remainder_bits, Do call) {
    if (bf16 && remainder_bits == 16)
        call(BFloat16{}, int16_t{});
    else if (bf16)
        call(BFloat16{}, int8_t{});
    else if (remainder_bits == 16)
        call(Half{}, int16_t{});
    else
        call(Half{}, int8_t{});
}

namespace py = pybind11;

template <class T>
T* data(const py::object& tensor) {
    return reinterpret_cast<T*>(tensor.attr("data_ptr")().cast<std::uintptr_t>());
}

// A sub-group: its weights, and one buffer with the scales of m and of v, the remainders, the codes of m and of v.
struct Compressed {
    State state;
    const Segment* segments;
    int64_t count, size;
    bool bf16;
    int remainder_bits;

    Compressed(const py::object& weight, const py::object& buffer, const py::object& segments, int64_t count,
               int64_t numel, int64_t blocks, int64_t size, bool bf16, int remainder_bits)
        : segments(data<Segment>(segments)), count(count), size(size), bf16(bf16), remainder_bits(remainder_bits) {
        auto* scales = data<float>(buffer);
        auto* remainder = reinterpret_cast<uint8_t*>(scales + 2 * blocks);
        auto* first = remainder + numel * remainder_bits / 8;
        state = {data<uint16_t>(weight), remainder, reinterpret_cast<int8_t*>(first),
                 first + numel,          scales,    scales + blocks};
    }

    void decode(float* master, float* m, float* v) const {
        with_types(bf16, remainder_bits, [&](auto weight, auto remainder) {
            for_blocks(segments, count, size, [&](const Segment&, int64_t, int64_t place, int64_t n, int64_t block) {
                decode_block<decltype(weight), decltype(remainder)>(state, master, m, v, place, n, block);
            });
        });
    }

    void encode(const float* master, const float* m, const float* v) const {
        with_types(bf16, remainder_bits, [&](auto weight, auto remainder) {
            for_blocks(segments, count, size, [&](const Segment&, int64_t, int64_t place, int64_t n, int64_t block) {
                encode_block<decltype(weight), decltype(remainder)>(state, master, m, v, place, n, block);
            });
        });
    }

    void step(const void* gradient, const std::string& gradient_dtype, const Step& step, int64_t number) const {
        const int kind = gradient_dtype == "torch.float32" ? 0 : gradient_dtype == "torch.float16" ? 1 : 2;
        with_types(bf16, remainder_bits, [&](auto weight, auto remainder) {
            using W = decltype(weight);
            using R = decltype(remainder);
            auto each = [&](const Segment& segment, int64_t element, int64_t place, int64_t n, int64_t block) {
                uint32_t seed = hash(hash(static_cast<uint32_t>(number)) + static_cast<uint32_t>(segment.number));
                Rounding rounding =
                    dithered(seed + 2 * static_cast<uint32_t>(element / size), static_cast<uint32_t>(element % size));
                if (kind == 0)
                    step_block<W, R, Float>(state, static_cast<const float*>(gradient), place, n, block, rounding,
                                            step);
                else if (kind == 1)
                    step_block<W, R, Half>(state, static_cast<const uint16_t*>(gradient), place, n, block, rounding,
                                           step);
                else
                    step_block<W, R, BFloat16>(state, static_cast<const uint16_t*>(gradient), place, n, block, rounding,
                                               step);
            };
            for_blocks(segments, count, size, each);
        });
    }
};

Step step_of(double gradient_scale, double lr, double beta1, double beta2, double eps, double weight_decay,
             bool bias_correction, int64_t number) {
    Step s;
    s.gradient_scale = static_cast<float>(gradient_scale);
    s.keep1 = static_cast<float>(beta1);
    s.add1 = static_cast<float>(1 - beta1);
    s.keep2 = static_cast<float>(beta2);
    s.add2 = static_cast<float>(1 - beta2);
    s.eps = static_cast<float>(eps);
    s.keep = static_cast<float>(1 - lr * weight_decay);
    s.rate = static_cast<float>(bias_correction ? lr / (1 - std::pow(beta1, number)) : lr);
    s.correction = static_cast<float>(bias_correction ? 1 / std::sqrt(1 - std::pow(beta2, number)) : 1);
    return s;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
    py::class_<Compressed>(module, "Compressed")
        .def(py::init<const py::object&, const py::object&, const py::object&, int64_t, int64_t, int64_t, int64_t, bool,
                      int>())
        .def("decode",
             [](const Compressed& self, const py::object& master, const py::object& m, const py::object& v) {
                 float *to_master = data<float>(master), *to_m = data<float>(m), *to_v = data<float>(v);
                 py::gil_scoped_release free;
                 self.decode(to_master, to_m, to_v);
             })
        .def("encode",
             [](const Compressed& self, const py::object& master, const py::object& m, const py::object& v) {
                 const float *from_master = data<float>(master), *from_m = data<float>(m), *from_v = data<float>(v);
                 py::gil_scoped_release free;
                 self.encode(from_master, from_m, from_v);
             })
        .def("step", [](const Compressed& self, const py::object& gradient, double gradient_scale, int64_t number,
                        double lr, double beta1, double beta2, double eps, double weight_decay, bool bias_correction) {
            const auto* from = data<void>(gradient);
            const std::string dtype = py::str(gradient.attr("dtype"));
            const Step step = step_of(gradient_scale, lr, beta1, beta2, eps, weight_decay, bias_correction, number);
            py::gil_scoped_release free;
            self.step(from, dtype, step, number);
        });
}
