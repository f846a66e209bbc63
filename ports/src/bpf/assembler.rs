//! An assembler for BPF programs: one method an instruction, and labels for what lies ahead.
//!
//! Conventions of the machine: `R0` is a call's result, `R1` to `R5` are its arguments and lost by it, `R6` to `R9`
//! survive, `FP` is the end of 512 bytes of stack. `R1` is the context when the program starts.

/// A register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Register(u8);

pub(crate) const R0: Register = Register(0);
pub(crate) const R1: Register = Register(1);
pub(crate) const R2: Register = Register(2);
pub(crate) const R3: Register = Register(3);
pub(crate) const R4: Register = Register(4);
pub(crate) const R6: Register = Register(6);
pub(crate) const R7: Register = Register(7);
pub(crate) const R8: Register = Register(8);
pub(crate) const R9: Register = Register(9);
pub(crate) const FP: Register = Register(10);

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) code: u8,
    pub(crate) registers: u8,
    pub(crate) offset: i16,
    pub(crate) immediate: i32,
}

/// How much a load or store moves: the opcode bits of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    W4 = 0x00,
    W2 = 0x08,
    W1 = 0x10,
    W8 = 0x18,
}

pub(crate) use Width::{W1, W2, W4, W8};

/// A comparison of 64 (or with an immediate, 32) bits, unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum If {
    Equal = 0x10,
    /// Any bit of the mask is set.
    AnyBit = 0x40,
    NotEqual = 0x50,
    AtLeast = 0x30,
    Below = 0xa0,
}

/// Arithmetic on 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alu {
    Add = 0x00,
    Or = 0x40,
    And = 0x50,
    ShiftLeft = 0x60,
    ShiftRight = 0x70,
}

/// A place in the program that jumps lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Label(usize);

/// Functions of the kernel, by number (`uapi/linux/bpf.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Helper {
    MapLookup = 1,
    MapUpdate = 2,
    Time = 5,
    Redirect = 23,
    SkbLoadBytes = 26,
    RedirectMap = 51,
    XdpLoadBytes = 189,
}

/// A program as it grows.
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    code: Vec<Instruction>,
    places: Vec<Option<usize>>,
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    fn put(&mut self, code: u8, to: Register, from: Register, offset: i16, immediate: i32) {
        self.code.push(Instruction { code, registers: to.0 | from.0 << 4, offset, immediate });
    }

    /// Makes a label, to be placed once.
    pub(crate) fn label(&mut self) -> Label {
        self.places.push(None);
        Label(self.places.len() - 1)
    }

    /// The next instruction is where jumps to `label` lead.
    pub(crate) fn place(&mut self, label: Label) {
        assert!(self.places[label.0].is_none(), "a label is placed once");
        self.places[label.0] = Some(self.code.len());
    }

    pub(crate) fn set(&mut self, to: Register, value: i32) {
        self.put(0xb7, to, R0, 0, value);
    }

    pub(crate) fn copy(&mut self, to: Register, from: Register) {
        self.put(0xbf, to, from, 0, 0);
    }

    pub(crate) fn alu(&mut self, operation: Alu, to: Register, value: i32) {
        self.put(0x07 | operation as u8, to, R0, 0, value);
    }

    pub(crate) fn alu_with(&mut self, operation: Alu, to: Register, from: Register) {
        self.put(0x0f | operation as u8, to, from, 0, 0);
    }

    /// Turns the low `bits` of a register from network order into the machine's; the others become 0.
    pub(crate) fn network_order(&mut self, register: Register, bits: i32) {
        self.put(0xdc, register, R0, 0, bits);
    }

    pub(crate) fn load(&mut self, width: Width, to: Register, from: Register, offset: i16) {
        self.put(0x61 | width as u8, to, from, offset, 0);
    }

    pub(crate) fn store(&mut self, width: Width, to: Register, offset: i16, from: Register) {
        self.put(0x63 | width as u8, to, from, offset, 0);
    }

    pub(crate) fn store_value(&mut self, width: Width, to: Register, offset: i16, value: i32) {
        self.put(0x62 | width as u8, to, R0, offset, value);
    }

    /// `to` = the address of what is at `offset` of the stack.
    pub(crate) fn stack(&mut self, to: Register, offset: i16) {
        self.copy(to, FP);
        self.alu(Alu::Add, to, offset.into());
    }

    pub(crate) fn jump(&mut self, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.put(0x05, R0, R0, 0, 0);
    }

    /// Jumps when the low 32 bits of `register` compare so with `value`.
    pub(crate) fn jump_if(&mut self, register: Register, how: If, value: i32, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.put(0x06 | how as u8, register, R0, 0, value);
    }

    /// Jumps when the pointer that a look-up returned is null.
    pub(crate) fn jump_if_null(&mut self, register: Register, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.put(0x15, register, R0, 0, 0);
    }

    /// Jumps when the result of a call, an error number, is not 0.
    pub(crate) fn jump_if_failed(&mut self, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.put(0x55, R0, R0, 0, 0);
    }

    /// Jumps when two registers compare so, in 64 bits.
    pub(crate) fn jump_if_both(&mut self, one: Register, how: If, other: Register, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.put(0x0d | how as u8, one, other, 0, 0);
    }

    pub(crate) fn call(&mut self, helper: Helper) {
        self.put(0x85, R0, R0, 0, helper as i32);
    }

    /// `to` = the map: an instruction of two slots, in which the loader replaces the descriptor by the address.
    pub(crate) fn map(&mut self, to: Register, map: &super::Map) {
        const PSEUDO_MAP_FD: Register = Register(1);
        self.put(0x18, to, PSEUDO_MAP_FD, 0, map.fd());
        self.put(0, R0, R0, 0, 0);
    }

    pub(crate) fn exit(&mut self) {
        self.put(0x95, R0, R0, 0, 0);
    }

    /// Returns the program.
    ///
    /// # Panics
    /// A label that a jump leads to was not placed, or lies too far away: a mistake in the program.
    pub(crate) fn finish(mut self) -> Vec<Instruction> {
        for (at, label) in self.jumps {
            let target = self.places[label.0].expect("a label that is used is placed");
            let distance = target.cast_signed() - at.cast_signed() - 1;
            self.code[at].offset = i16::try_from(distance).expect("programs are short");
        }
        self.code
    }
}
