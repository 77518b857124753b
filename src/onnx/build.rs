//! Building a graph node by node.

use bytes::Bytes;

use super::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetId, TensorProto, ValueInfoProto,
    attribute_type, data_type,
};

/// Opset and file format version that built models declare.
const OPSET: i64 = 18;
const IR_VERSION: i64 = 9;

/// Domain of ONNX Runtime's own operators.
const MICROSOFT: &str = "com.microsoft";

/// Builder that collects nodes and weights into a model. A value is identified by its name.
#[derive(Debug, Default)]
pub struct GraphBuilder {
    graph: GraphProto,
    num_names: usize,
}

/// Value of a node's attribute.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "one variant an attribute type")]
pub enum Attribute {
    Int(i64),
    Ints(Vec<i64>),
    Float(f32),
    Text(&'static str),
}

impl GraphBuilder {
    /// Declares a graph input and returns its name; `None` in `shape` is an axis of any extent.
    pub fn input(&mut self, name: &str, elem_type: i32, shape: &[Option<i64>]) -> String {
        self.graph.input.push(ValueInfoProto::tensor(name, elem_type, shape));
        name.into()
    }

    /// Adds a weight, unless the graph has one of its name, and returns its name.
    pub fn weight(&mut self, tensor: TensorProto) -> String {
        let name = tensor.name.clone();
        if !self.graph.initializer.iter().any(|known| known.name == name) {
            self.graph.initializer.push(tensor);
        }
        name
    }

    /// Adds a constant list of integers and returns its name.
    pub fn ints(&mut self, values: &[i64]) -> String {
        let raw = values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
        self.constant(data_type::INT64, vec![values.len() as i64], raw)
    }

    /// Adds a constant integer scalar and returns its name.
    pub fn int(&mut self, value: i64) -> String {
        self.constant(data_type::INT64, Vec::new(), value.to_le_bytes().to_vec())
    }

    /// Adds a constant float scalar and returns its name.
    pub fn float(&mut self, value: f32) -> String {
        self.constant(data_type::FLOAT, Vec::new(), value.to_le_bytes().to_vec())
    }

    /// Adds a constant float tensor and returns its name.
    pub fn floats(&mut self, dims: Vec<i64>, values: &[f32]) -> String {
        let raw = values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
        self.constant(data_type::FLOAT, dims, raw)
    }

    /// Adds a node with an operator of the ONNX standard and returns its output.
    pub fn node(&mut self, op: &str, inputs: &[&str], attributes: &[(&str, Attribute)]) -> String {
        self.add("", op, inputs, attributes)
    }

    /// Adds a node with one of ONNX Runtime's own operators and returns its output.
    pub fn fused(&mut self, op: &str, inputs: &[&str], attributes: &[(&str, Attribute)]) -> String {
        self.add(MICROSOFT, op, inputs, attributes)
    }

    /// Adds a node with one of ONNX Runtime's own operators, whose outputs get the names `outputs`.
    /// An empty name among `inputs` is an input that is left out.
    pub fn fused_outputs(
        &mut self,
        op: &str,
        inputs: &[&str],
        outputs: &[&str],
        attributes: &[(&str, Attribute)],
    ) {
        self.add(MICROSOFT, op, inputs, attributes);
        if let Some(node) = self.graph.node.last_mut() {
            node.output = outputs.iter().map(|&output| output.into()).collect();
        }
    }

    /// Declares the value `name` a graph output.
    pub fn declare_output(&mut self, name: &str, elem_type: i32, shape: &[Option<i64>]) {
        self.graph.output.push(ValueInfoProto::tensor(name, elem_type, shape));
    }

    /// Makes the f32 tensor `value` a graph output with the name `name`.
    pub fn output(&mut self, value: &str, name: &str, shape: &[Option<i64>]) {
        self.graph.node.push(NodeProto {
            input: vec![value.into()],
            output: vec![name.into()],
            op_type: "Identity".into(),
            ..NodeProto::default()
        });
        self.graph.output.push(ValueInfoProto::tensor(name, data_type::FLOAT, shape));
    }

    /// Builds the model, with `value` as its last output under the name `name`.
    pub fn finish(mut self, value: &str, name: &str, shape: &[Option<i64>]) -> ModelProto {
        self.output(value, name, shape);
        self.end()
    }

    /// Builds the model.
    pub fn end(mut self) -> ModelProto {
        self.graph.name = "module".into();
        let opset = |domain: &str, version| OperatorSetId { domain: domain.into(), version };
        ModelProto {
            ir_version: IR_VERSION,
            producer_name: "tessera".into(),
            opset_import: vec![opset("", OPSET), opset(MICROSOFT, 1)],
            graph: Some(self.graph),
            metadata_props: Vec::new(),
        }
    }

    fn add(
        &mut self,
        domain: &str,
        op: &str,
        inputs: &[&str],
        attributes: &[(&str, Attribute)],
    ) -> String {
        let output = self.name(op);
        self.graph.node.push(NodeProto {
            input: inputs.iter().map(|&input| input.into()).collect(),
            output: vec![output.clone()],
            name: output.clone(),
            op_type: op.into(),
            domain: domain.into(),
            attribute: attributes.iter().map(|(name, value)| attribute(name, value)).collect(),
        });
        output
    }

    fn constant(&mut self, data_type: i32, dims: Vec<i64>, raw: Vec<u8>) -> String {
        let name = self.name("constant");
        self.weight(TensorProto {
            name,
            data_type,
            dims,
            raw_data: Some(Bytes::from(raw)),
            ..TensorProto::default()
        })
    }

    fn name(&mut self, stem: &str) -> String {
        self.num_names += 1;
        format!("{stem}_{}", self.num_names)
    }
}

fn attribute(name: &str, value: &Attribute) -> AttributeProto {
    let named = AttributeProto { name: name.into(), ..AttributeProto::default() };
    match value {
        Attribute::Int(value) => {
            AttributeProto { i: Some(*value), r#type: attribute_type::INT, ..named }
        }
        Attribute::Ints(values) => {
            AttributeProto { ints: values.clone(), r#type: attribute_type::INTS, ..named }
        }
        Attribute::Float(value) => {
            AttributeProto { f: Some(*value), r#type: attribute_type::FLOAT, ..named }
        }
        Attribute::Text(text) => {
            let text = Bytes::from_static(text.as_bytes());
            AttributeProto { s: Some(text), r#type: attribute_type::STRING, ..named }
        }
    }
}
