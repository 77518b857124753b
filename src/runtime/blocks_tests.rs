//! Tests of products and tables of quantized blocks against their values in f32.

use ort::value::{DynValue, Tensor as OrtTensor};
use tempfile::TempDir;

use super::{SideInputs, session::ModuleSession, support_tests::runtime};
use crate::{
    module::{INPUT_IDS, Network, Precision},
    onnx::{
        Attribute, GraphBuilder,
        blocks::BlockType,
        external::{Place, initializer},
        proto::{ModelProto, TensorProto, data_type},
    },
};

const WIDTH: usize = 256;
const ROWS: usize = 80;

/// Types, with the places of a block's half-precision numbers.
const TYPES: [(BlockType, &[usize]); 8] = [
    (BlockType::Q4_0, &[0]),
    (BlockType::Q4_1, &[0, 2]),
    (BlockType::Q5_0, &[0]),
    (BlockType::Q5_1, &[0, 2]),
    (BlockType::Q8_0, &[0]),
    (BlockType::Q4K, &[0, 2]),
    (BlockType::Q5K, &[0, 2]),
    (BlockType::Q6K, &[208]),
];

/// Random blocks in a file.
struct Blocks {
    folder: TempDir,
    block_type: BlockType,
}

fn noise(seed: u64) -> impl Iterator<Item = u16> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 48) as u16
    })
}

fn floats(seed: u64, num: usize) -> Vec<f32> {
    noise(seed).take(num).map(|value| f32::from(value) / 32_768.0 - 1.0).collect()
}

impl Blocks {
    fn new(block_type: BlockType, halves: &[usize]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let size = block_type.bytes();
        let num = ROWS * WIDTH / block_type.elements();
        let mut bytes: Vec<u8> =
            noise(1).take(num * size).map(|value| (value >> 8) as u8).collect();
        for block in bytes.chunks_exact_mut(size) {
            for half in halves {
                // A number from 2^-7 to 2^-6, with either sign.
                block[half + 1] = (block[half + 1] & 0x83) | 0x20;
            }
        }
        std::fs::write(folder.path().join("w"), bytes).expect("written");
        Self { folder, block_type }
    }

    fn weight(&self, rows: std::ops::Range<usize>) -> TensorProto {
        let row = (WIDTH / self.block_type.elements() * self.block_type.bytes()) as u64;
        let (offset, length) = (row * rows.start as u64, row * rows.len() as u64);
        let place = Place { file: "w".into(), offset, length };
        let dims = vec![rows.len() as i64, WIDTH as i64];
        let name = format!("weight.{}", rows.start);
        initializer(&name, self.block_type.data_type(), dims, &place)
    }

    /// Returns a graph of two products of one left side, joined.
    fn products(&self) -> ModelProto {
        let mut graph = GraphBuilder::default();
        let left = graph.input("hidden", data_type::FLOAT, &[None, None, Some(WIDTH as i64)]);
        let products = [0..48, 48..ROWS].map(|rows| {
            let weight = graph.weight(self.weight(rows));
            let weight = as_floats(&mut graph, &weight);
            let perm = Attribute::Ints(vec![1, 0]);
            let weight = graph.node("Transpose", &[&weight], &[("perm", perm)]);
            graph.node("MatMul", &[&left, &weight], &[])
        });
        let axis = Attribute::Int(-1);
        let joined = graph.node("Concat", &[&products[0], &products[1]], &[("axis", axis)]);
        graph.finish(&joined, "output", &[None, None, Some(ROWS as i64)])
    }

    /// Returns a graph that chooses rows.
    fn table(&self) -> ModelProto {
        let mut graph = GraphBuilder::default();
        let ids = graph.input(INPUT_IDS, data_type::INT64, &[None, None]);
        let table = graph.weight(self.weight(0..ROWS));
        let rows = graph.node("Gather", &[&table, &ids], &[("axis", Attribute::Int(0))]);
        let rows = as_floats(&mut graph, &rows);
        graph.finish(&rows, "output", &[None, None, Some(WIDTH as i64)])
    }

    fn session(&self, model: ModelProto, precision: Precision) -> ModuleSession {
        let network = Network::new(model, precision);
        let folder = self.folder.path();
        ModuleSession::load(runtime().environment(), folder, "part", &network)
            .unwrap_or_else(|error| panic!("{:?} {precision:?}: {error:?}", self.block_type))
    }
}

fn as_floats(graph: &mut GraphBuilder, value: &str) -> String {
    graph.node("Cast", &[value], &[("to", Attribute::Int(i64::from(data_type::FLOAT)))])
}

fn product(session: &mut ModuleSession, rows: &[f32], batch: usize) -> Vec<f32> {
    let shape = [batch, rows.len() / WIDTH / batch, WIDTH];
    let state: DynValue = OrtTensor::from_array((shape, rows.to_vec())).expect("rows").into_dyn();
    let outputs = session.run(&[], Some(&state), &SideInputs::default()).expect("it runs");
    outputs[0].1.try_extract_tensor::<f32>().expect("f32").1.to_vec()
}

#[test]
fn products_are_near_those_of_the_values() {
    // Rows of very different size: each group of each row has its own scale.
    let sizes = [1e-3, 1.0, 1e3, 0.1];
    let rows = floats(2, sizes.len() * WIDTH).into_iter().enumerate();
    let rows: Vec<f32> = rows.map(|(place, value)| value * sizes[place / WIDTH]).collect();
    for (block_type, halves) in TYPES {
        let blocks = Blocks::new(block_type, halves);
        let run = |precision| product(&mut blocks.session(blocks.products(), precision), &rows, 2);
        let (expected, found) = (run(Precision::Dequantized), run(Precision::F32));
        for (row, (found, expected)) in found.chunks(ROWS).zip(expected.chunks(ROWS)).enumerate() {
            let length = |values: &mut dyn Iterator<Item = f32>| {
                values.map(|value| value * value).sum::<f32>().sqrt()
            };
            let far = length(&mut found.iter().zip(expected).map(|(a, b)| a - b));
            let share = far / length(&mut expected.iter().copied());
            assert!(share < 0.012, "{block_type:?}, row {row}: {share}");
            assert!(share > 1e-7, "{block_type:?}: nothing was quantized");
        }
    }
}

#[test]
fn a_row_alone_gives_the_same_bits_as_in_a_batch() {
    let rows = floats(3, 9 * WIDTH);
    for (block_type, halves) in TYPES {
        let blocks = Blocks::new(block_type, halves);
        for precision in [Precision::F32, Precision::Dequantized] {
            let mut session = blocks.session(blocks.products(), precision);
            let mut run = |rows: &[f32]| product(&mut session, rows, 1);
            let together = run(&rows);
            for row in 0..9 {
                let alone = run(&rows[row * WIDTH..][..WIDTH]);
                assert_eq!(alone, together[row * ROWS..][..ROWS], "{block_type:?} {precision:?}");
            }
        }
    }
}

#[test]
fn chosen_rows_are_those_of_the_values() {
    let ids = [0_i64, 79, 3, 3];
    for (block_type, halves) in TYPES {
        let blocks = Blocks::new(block_type, halves);
        let run = |precision| {
            let mut session = blocks.session(blocks.table(), precision);
            let ids = OrtTensor::from_array(([1, ids.len()], ids.to_vec())).expect("ids");
            let sides = SideInputs { values: vec![(INPUT_IDS, ids.into_dyn())] };
            let outputs = session.run(&[], None, &sides).expect("it runs");
            outputs[0].1.try_extract_tensor::<f32>().expect("f32").1.to_vec()
        };
        let (expected, found) = (run(Precision::Dequantized), run(Precision::F32));
        assert_eq!(found.len(), ids.len() * WIDTH);
        for (found, expected) in found.iter().zip(&expected) {
            // With minima, the middle level is subtracted and added again.
            assert!((found - expected).abs() < 1e-5, "{block_type:?}: {found} {expected}");
        }
    }
}
