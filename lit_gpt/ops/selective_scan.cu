// The selective scan of lit_gpt/ops/selective_scan.py, which has the formulas: the forward pass, and what backward,
// selective_scan_backward.cu, has in common with it.
//
// A block has 64 channels of one row and goes through its tokens one after the other, so nothing is computed twice for
// the sake of a parallel scan. A thread has 2 channels and 4 of their N states in registers; N / 4 neighbours share
// the 2 channels. Tiles of tokens pass through shared memory: the next one is copied while one is computed.
//
// Names: d the step softplus(dt + bias), u = d x, a = exp(d A), h = a h + u B, y = C . h; backward g = dL/dh.
// selective_scan_cuda.py puts before it: T the numbers' type, N states per channel, TILE tokens of a tile, SUB tokens
// of a part of it, FORWARD_BYTES and BACKWARD_BYTES of shared memory.

constexpr int CHANNELS = 64;        // of a block
constexpr int THREADS = 8 * N;      // 2 channels and 4 states each
constexpr int WARPS = THREADS / 32;
constexpr int TOKENS = THREADS / CHANNELS;  // that threads with a channel each do at once
constexpr int LANES = N / 4;        // that share a pair of channels
constexpr float LOG2E = 1.4426950408889634f;
constexpr float RESET = 1073741824.0f;  // 2^30, the step where a document starts: the state decays to exactly 0

static_assert(N == 8 || N == 16 || N == 32, "the sums over lanes are written for these");

// The tensors of all kernels; those that a kernel does not use are null. R rows (of `segments` to a row of the batch),
// L tokens, C channels. A stride is in numbers; what has none is contiguous.
struct Arguments {
    const T *x, *dt, *B, *C, *dy;     // (R, L, C), but B and C (R, L, N)
    const float *A, *D, *bias;        // (C, N), (C), (C)
    const float* state;               // (R, C, N) before the first token, or null for zeros
    const unsigned char* starts;      // (R, L): whether a document starts, or null
    float* saved;                     // (R, tiles, C, N): the state before each tile, or null
    T* y;                             // (R, L, C)
    float *last, *total;              // (R, C, N) the state after the last token; (R, C) the sum of steps
    const float* dlast;               // (R, C, N), or null for zeros
    T *dx, *ddt;                      // (R, L, C)
    float* dBC;                       // (blocks along channels, R, L, 2, N): parts of dB and dC
    float *dA, *dD, *dbias, *dstate;  // (R, C, N), (R, C), (R, C), (R, C, N)
    long long x_row, x_token, dt_row, dt_token, B_row, B_token, C_row, C_token, dy_row, dy_token;
    int length, channels, segments, aligned;  // aligned: whether all of x, dt, B, C, dy can be read 16 bytes at once
};

extern __shared__ float4 shared_memory[];

// Which part of the work is a thread's. Bit 0 of the lane is of the pair of channels, then come the bits of the
// quarter, then the other bits of the pair: so lanes that differ in bit 0 read the same B and C, and those that differ
// in bit 1 the same channels, which lets 8 and 16 byte reads of shared memory share their passes.
//
// Slot j of a thread is state 4 quarter + (j ^ turn) in the backward kernel. Two lanes whose turns differ in one bit
// then have one state in slots that differ in it, and a sum over such lanes is v[j] + exchange(v[j ^ bit]): each lane
// keeps half of the slots without choosing among registers. B and C lie in shared memory once for each turn.
struct Lane {
    static constexpr int TURN_0 = N == 32 ? 16 : 8, TURN_1 = N == 32 ? 1 : 16;
    int id, quarter, channel, turn;
    __device__ Lane() {
        id = threadIdx.x % 32;
        quarter = (id >> 1) % LANES;
        const int pair = (id & 1) | (id / (2 * LANES)) << 1;
        channel = 2 * (threadIdx.x / 32 * (32 / LANES) + pair);
        turn = ((id & TURN_0) ? 1 : 0) | ((id & TURN_1) ? 2 : 0);
    }
};

// Where the block is in the tensors, and the channel and the first token that a thread has by itself.
struct Place {
    long long row, batch, token;
    int first, tiles, own, own_token;
    __device__ Place(const Arguments& p) {
        row = blockIdx.y;
        batch = row / p.segments;
        token = row % p.segments * p.length;
        first = blockIdx.x * CHANNELS;
        tiles = (p.length + TILE - 1) / TILE;
        own = threadIdx.x % CHANNELS;
        own_token = threadIdx.x / CHANNELS;
    }
    __device__ const T* at(const T* x, long long of_row, long long of_token, int tile) const {
        return x + batch * of_row + (token + (long long)tile * TILE) * of_token;
    }
    // Of number `state` of `channel` in (R, C, N).
    __device__ long long state(const Arguments& p, int channel, int state) const {
        return (row * p.channels + channel) * N + state;
    }
};

// A tile of shared memory from `rows` x `columns` numbers, and zeros around them.
template <int COLUMNS>
__device__ __forceinline__ void stage(T* to, const T* from, long long stride, int rows, int columns, bool aligned) {
    constexpr int PIECE = 16 / sizeof(T), PIECES = COLUMNS / PIECE;
    if (aligned) {
        for (int i = threadIdx.x; i < TILE * PIECES; i += THREADS) {
            const int row = i / PIECES, column = i % PIECES * PIECE;
            const bool inside = row < rows && column < columns;
            copy_16(to + row * COLUMNS + column, inside ? from + row * stride + column : from, inside);
        }
    } else {
        for (int i = threadIdx.x; i < TILE * COLUMNS; i += THREADS) {
            const int row = i / COLUMNS, column = i % COLUMNS;
            to[i] = row < rows && column < columns ? from[row * stride + column] : T{};
        }
    }
}

template <typename Memory>
__device__ __forceinline__ void stage_inputs(const Arguments& p, const Place& at, Memory& m, int tile) {
    const int rows = p.length - tile * TILE, columns = p.channels - at.first;
    stage<CHANNELS>(m.raw_x, at.at(p.x, p.x_row, p.x_token, tile) + at.first, p.x_token, rows, columns, p.aligned);
    stage<CHANNELS>(m.raw_dt, at.at(p.dt, p.dt_row, p.dt_token, tile) + at.first, p.dt_token, rows, columns, p.aligned);
    stage<N>(m.raw_B, at.at(p.B, p.B_row, p.B_token, tile), p.B_token, rows, N, p.aligned);
    stage<N>(m.raw_C, at.at(p.C, p.C_row, p.C_token, tile), p.C_token, rows, N, p.aligned);
}

// log(1 + exp(v)) = max(v, 0) + log(1 + e) with e = exp(-|v|), and log(1 + e) = 2 artanh(s) with s = e / (2 + e), of
// which the series up to s^11 is exact to rounding, as s <= 1/3. log1pf takes three times the instructions.
__device__ __forceinline__ float softplus(float v) {
    const float e = power_of_2(-fabsf(v) * LOG2E), s = quotient(e, 2 + e), s2 = s * s;
    const float series = 1 + s2 * (1.0f / 3 + s2 * (1.0f / 5 + s2 * (1.0f / 7 + s2 * (1.0f / 9 + s2 * (1.0f / 11)))));
    return fmaxf(v, 0.0f) + 2 * s * series;
}

// x, d and u of a staged tile in fp32; the sum of this thread's steps. Outside d = u = 0, which leaves the state.
template <typename Memory>
__device__ __forceinline__ float make_terms(const Arguments& p, const Place& at, Memory& m, int tile, float bias) {
    const int tokens = at.first + at.own < p.channels ? p.length - tile * TILE : 0;
    float sum = 0.0f;
#pragma unroll 4
    for (int t = at.own_token; t < TILE; t += TOKENS) {
        const int i = t * CHANNELS + at.own;
        const float x = number(m.raw_x[i]), d = t < tokens ? softplus(number(m.raw_dt[i]) + bias) : 0.0f;
        m.x[i] = x;
        m.added[i] = d * x;
        m.step[i] = d;
        sum += d;
    }
    if (p.starts) {
        const unsigned char* starts = p.starts + at.row * p.length + (long long)tile * TILE;
        for (int t = at.own_token; t < min(tokens, TILE); t += TOKENS)
            if (starts[t]) {
                m.step[t * CHANNELS + at.own] = RESET;
                sum += RESET;
            }
    }
    return sum;
}

// B or C of a staged tile in fp32, once for each turn; a thread has 4 states of a token.
template <int TURNS>
__device__ __forceinline__ void make_maps(float* to, const T* raw) {
    static_assert(TILE * LANES == THREADS, "a thread for each");
    const int t = threadIdx.x / LANES, state = 4 * (threadIdx.x % LANES);
    float v[4];
#pragma unroll
    for (int j = 0; j < 4; j++) v[j] = number(raw[t * N + state + j]);
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++) {
        const float4 turned = make_float4(v[turn], v[1 ^ turn], v[2 ^ turn], v[3 ^ turn]);
        *reinterpret_cast<float4*>(to + (t * TURNS + turn) * N + state) = turned;
    }
}

// The sum of each channel's threads, of which there are a few, written by one of them.
__device__ __forceinline__ void sum_of_channel(float* scratch, float* to, const Place& at, int channels, float value) {
    __syncthreads();
    scratch[threadIdx.x] = value;
    __syncthreads();
    if (threadIdx.x >= CHANNELS || at.first + (int)threadIdx.x >= channels) return;
    for (int i = threadIdx.x + CHANNELS; i < THREADS; i += CHANNELS) value += scratch[i];
    to[at.row * channels + at.first + threadIdx.x] = value;
}

struct ForwardMemory {
    float step[TILE * CHANNELS], added[TILE * CHANNELS], x[TILE * CHANNELS];  // d, u and then y, x
    float B[TILE * N], C[TILE * N];
    T raw_x[TILE * CHANNELS], raw_dt[TILE * CHANNELS], raw_B[TILE * N], raw_C[TILE * N];
};
static_assert(sizeof(ForwardMemory) == FORWARD_BYTES, "what the host asks for");

// OUTPUT: y and what backward needs; else only the last state and the sum of steps.
template <bool OUTPUT>
__device__ __forceinline__ void forward(const Arguments& p) {
    ForwardMemory& m = *reinterpret_cast<ForwardMemory*>(shared_memory);
    const Lane lane;
    const Place at(p);
    const int channel = at.first + lane.channel, own = at.first + at.own, state = 4 * lane.quarter;
    const float bias = own < p.channels ? p.bias[own] : 0.0f, skip = OUTPUT && own < p.channels ? p.D[own] : 0.0f;
    float A[2][4], h[2][4], sum = 0.0f;
    for (int k = 0; k < 2; k++)
        for (int j = 0; j < 4; j++) {
            const bool inside = channel + k < p.channels;
            A[k][j] = inside ? p.A[(channel + k) * N + state + j] * LOG2E : 0.0f;
            h[k][j] = inside && p.state ? p.state[at.state(p, channel + k, state + j)] : 0.0f;
        }
    stage_inputs(p, at, m, 0);
    for (int tile = 0; tile < at.tiles; tile++) {
        copies_done();
        __syncthreads();
        sum += make_terms(p, at, m, tile, bias);
        make_maps<1>(m.B, m.raw_B);
        make_maps<1>(m.C, m.raw_C);
        __syncthreads();
        if (tile + 1 < at.tiles) stage_inputs(p, at, m, tile + 1);
        if (OUTPUT && p.saved)
            for (int k = 0; k < 2; k++)
                if (channel + k < p.channels) {
                    const long long place = ((at.row * at.tiles + tile) * p.channels + channel + k) * N + state;
                    *reinterpret_cast<float4*>(p.saved + place) = make_float4(h[k][0], h[k][1], h[k][2], h[k][3]);
                }
        constexpr int GROUP = 8;  // tokens whose reads come before their writes
        for (int t0 = 0; t0 < TILE; t0 += GROUP) {
            float y[GROUP];
#pragma unroll
            for (int i = 0; i < GROUP; i++) {
                const int t = t0 + i;
                const float2 d = *reinterpret_cast<const float2*>(m.step + t * CHANNELS + lane.channel);
                const float2 u = *reinterpret_cast<const float2*>(m.added + t * CHANNELS + lane.channel);
                const float4 b4 = *reinterpret_cast<const float4*>(m.B + t * N + state);
                const float4 c4 = *reinterpret_cast<const float4*>(m.C + t * N + state);
                const float b[4] = {b4.x, b4.y, b4.z, b4.w}, c[4] = {c4.x, c4.y, c4.z, c4.w};
                float y0 = 0.0f, y1 = 0.0f;
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    h[0][j] = power_of_2(d.x * A[0][j]) * h[0][j] + u.x * b[j];
                    h[1][j] = power_of_2(d.y * A[1][j]) * h[1][j] + u.y * b[j];
                    y0 += c[j] * h[0][j];
                    y1 += c[j] * h[1][j];
                }
                if (OUTPUT) {  // over the lanes of a pair: each keeps one channel
                    const bool second = lane.quarter & 1;
                    y[i] = (second ? y1 : y0) + exchange(second ? y0 : y1, 2);
#pragma unroll
                    for (int mask = 4; mask < 2 * LANES; mask *= 2) y[i] += exchange(y[i], mask);
                }
            }
            if (OUTPUT && lane.quarter < 2)
#pragma unroll
                for (int i = 0; i < GROUP; i++) m.added[(t0 + i) * CHANNELS + lane.channel + lane.quarter] = y[i];
        }
        __syncthreads();
        if (OUTPUT) {
            T* y = p.y + (at.row * p.length + (long long)tile * TILE) * p.channels + own;
            const int tokens = own < p.channels ? p.length - tile * TILE : 0;
#pragma unroll 4
            for (int t = at.own_token; t < TILE; t += TOKENS) {
                const int i = t * CHANNELS + at.own;
                if (t < tokens) put(y[t * p.channels], m.added[i] + skip * m.x[i]);
            }
        }
    }
    for (int k = 0; k < 2; k++)
        for (int j = 0; j < 4; j++)
            if (channel + k < p.channels) p.last[at.state(p, channel + k, state + j)] = h[k][j];
    if (!OUTPUT) sum_of_channel(m.step, p.total, at, p.channels, sum);
}

extern "C" __global__ void __launch_bounds__(THREADS) scan_forward(const Arguments p) { forward<true>(p); }
extern "C" __global__ void __launch_bounds__(THREADS) scan_ends(const Arguments p) { forward<false>(p); }
