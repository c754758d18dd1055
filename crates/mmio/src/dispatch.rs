//! The table from mnemonic to what it does. What is not in it is not supported.

use iced_x86::{ConditionCode, Mnemonic as M};

use crate::Error;
use crate::alu;
use crate::machine::Machine;
use crate::packed;
use crate::registers::flags;
use crate::string::Operation;
use crate::vector_move::Alignment::{Any, Demanded};

/// Performs the instruction on the machine's working copy.
pub(crate) fn perform(m: &mut Machine<'_>) -> Result<(), Error> {
    let mnemonic = m.instruction.mnemonic();
    match mnemonic {
        M::Mov | M::Movzx | M::Movnti | M::Movdiri => m.mov(),
        M::Movsx | M::Movsxd => m.mov_sign_extended(),
        M::Movbe => m.mov_swapped(),
        M::Movdir64b => m.mov_64_bytes(),
        M::Enqcmd => m.enqueue(),
        M::Xlatb => m.translate(),

        M::Add => m.binary(alu::add),
        M::Adc => m.binary_with_carry(alu::add),
        M::Sub => m.binary(alu::sub),
        M::Sbb => m.binary_with_carry(alu::sub),
        M::And => m.binary(alu::and),
        M::Or => m.binary(alu::or),
        M::Xor => m.binary(alu::xor),
        M::Cmp => m.compare(alu::sub),
        M::Test => m.compare(alu::and),
        M::Inc => m.unary(alu::inc),
        M::Dec => m.unary(alu::dec),
        M::Neg => m.unary(alu::neg),
        M::Not => m.unary(alu::not),
        M::Shl | M::Sal => m.binary(alu::shl),
        M::Shr => m.binary(alu::shr),
        M::Sar => m.binary(alu::sar),
        M::Rol => m.binary(alu::rol),
        M::Ror => m.binary(alu::ror),
        M::Rcl => m.binary_with_carry(alu::rcl),
        M::Rcr => m.binary_with_carry(alu::rcr),
        M::Shld => m.double_shift(alu::shld),
        M::Shrd => m.double_shift(alu::shrd),
        M::Mul => m.multiply_wide(alu::multiply),
        M::Imul => m.multiply(),
        M::Div => m.divide(alu::divide),
        M::Idiv => m.divide(alu::divide_signed),

        M::Xchg => m.exchange(),
        M::Xadd => m.exchange_add(),
        M::Cmpxchg => m.compare_exchange(),
        M::Cmpxchg8b => m.compare_exchange_pair(4),
        M::Cmpxchg16b => m.compare_exchange_pair(8),

        M::Bt => m.bit(None),
        M::Bts => m.bit(Some(|value, bit| value | bit)),
        M::Btr => m.bit(Some(|value, bit| value & !bit)),
        M::Btc => m.bit(Some(|value, bit| value ^ bit)),
        M::Bsf => m.scan(true),
        M::Bsr => m.scan(false),
        M::Tzcnt => m.count_zeros(true),
        M::Lzcnt => m.count_zeros(false),
        M::Popcnt => m.count_ones(),
        M::Andn => m.and_not(),
        M::Blsi | M::Blsr | M::Blsmsk => m.lowest_bit(),
        M::Bzhi => m.zero_high_bits(),
        M::Bextr => m.extract_field(),
        M::Rorx => m.shift_without_flags(alu::ror),
        M::Sarx => m.shift_without_flags(alu::sar),
        M::Shlx => m.shift_without_flags(alu::shl),
        M::Shrx => m.shift_without_flags(alu::shr),
        M::Pdep => m.permute_bits(true),
        M::Pext => m.permute_bits(false),
        M::Mulx => m.multiply_without_flags(),
        M::Adcx => m.add_with(flags::CF),
        M::Adox => m.add_with(flags::OF),
        M::Crc32 => m.checksum(),

        M::Push => m.push(),
        M::Pop => m.pop(),
        M::Leave => m.leave(),
        M::Jmp => m.jump_near(),
        M::Call => m.call_near(),
        M::Ret => m.return_near(),

        M::Movsd | M::Cmpsd if m.names_vector() => vector(m),
        M::Movsb | M::Movsw | M::Movsd | M::Movsq => m.string(Operation::Move),
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq => m.string(Operation::Compare),
        M::Stosb | M::Stosw | M::Stosd | M::Stosq => m.string(Operation::Store),
        M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq => m.string(Operation::Load),
        M::Scasb | M::Scasw | M::Scasd | M::Scasq => m.string(Operation::Scan),

        // Hints, and CLFLUSH, which faults as a load does: none is an access that a device could see.
        M::Nop
        | M::Prefetch
        | M::Prefetchw
        | M::Prefetchwt1
        | M::Prefetchnta
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2
        | M::Clflush
        | M::Clflushopt
        | M::Clwb
        | M::Cldemote => Ok(()),

        _ if m.instruction.condition_code() == ConditionCode::None => vector(m),
        // Of the conditional instructions SETcc has one operand and CMOVcc two; Jcc, which has one as well, names a
        // target and fails for the lack of something to write.
        _ => match m.instruction.op_count() {
            1 => m.set_if(),
            2 => m.mov_if(),
            _ => Err(m.unsupported()),
        },
    }
}

/// The instructions that name a vector, MMX or mask register.
fn vector(m: &mut Machine<'_>) -> Result<(), Error> {
    let mnemonic = m.instruction.mnemonic();
    match mnemonic {
        M::Movaps | M::Vmovaps | M::Movntps | M::Vmovntps => m.move_vector(4, Demanded),
        M::Movapd | M::Vmovapd | M::Movntpd | M::Vmovntpd => m.move_vector(8, Demanded),
        M::Movdqa | M::Vmovdqa | M::Movntdq | M::Vmovntdq | M::Movntdqa | M::Vmovntdqa | M::Vmovdqa64 => {
            m.move_vector(8, Demanded)
        }
        M::Vmovdqa32 => m.move_vector(4, Demanded),
        M::Movups | M::Vmovups => m.move_vector(4, Any),
        M::Movupd | M::Vmovupd | M::Movdqu | M::Vmovdqu | M::Lddqu | M::Vlddqu => m.move_vector(8, Any),
        M::Vmovdqu8 => m.move_vector(1, Any),
        M::Vmovdqu16 => m.move_vector(2, Any),
        M::Vmovdqu32 => m.move_vector(4, Any),
        M::Vmovdqu64 => m.move_vector(8, Any),
        M::Movntq => m.move_vector(8, Any),

        M::Movd | M::Vmovd | M::Movq | M::Vmovq | M::Vmovw | M::Vmovsh => m.move_scalar(),
        M::Movss | M::Vmovss | M::Movsd | M::Vmovsd | M::Movntss | M::Movntsd => m.move_scalar(),
        M::Movlps | M::Vmovlps | M::Movlpd | M::Vmovlpd => m.move_half(0),
        M::Movhps | M::Vmovhps | M::Movhpd | M::Vmovhpd => m.move_half(8),

        M::Pinsrb | M::Vpinsrb => m.insert_chunk(1),
        M::Pinsrw | M::Vpinsrw => m.insert_chunk(2),
        M::Pinsrd | M::Vpinsrd => m.insert_chunk(4),
        M::Pinsrq | M::Vpinsrq => m.insert_chunk(8),
        M::Insertps | M::Vinsertps => m.insert_and_clear(),
        M::Vinsertf128 | M::Vinserti128 => m.insert_chunk(16),
        M::Vinsertf32x4 | M::Vinserti32x4 | M::Vinsertf64x2 | M::Vinserti64x2 => m.insert_chunk(16),
        M::Vinsertf32x8 | M::Vinserti32x8 | M::Vinsertf64x4 | M::Vinserti64x4 => m.insert_chunk(32),
        M::Pextrb | M::Vpextrb => m.extract_chunk(1),
        M::Pextrw | M::Vpextrw => m.extract_chunk(2),
        M::Pextrd | M::Vpextrd | M::Extractps | M::Vextractps => m.extract_chunk(4),
        M::Pextrq | M::Vpextrq => m.extract_chunk(8),
        M::Vextractf128 | M::Vextracti128 => m.extract_chunk(16),
        M::Vextractf32x4 | M::Vextracti32x4 | M::Vextractf64x2 | M::Vextracti64x2 => m.extract_chunk(16),
        M::Vextractf32x8 | M::Vextracti32x8 | M::Vextractf64x4 | M::Vextracti64x4 => m.extract_chunk(32),

        M::Vpbroadcastb => m.broadcast(1, 1),
        M::Vpbroadcastw => m.broadcast(2, 2),
        M::Vpbroadcastd | M::Vbroadcastss => m.broadcast(4, 4),
        M::Vpbroadcastq | M::Vbroadcastsd | M::Movddup => m.broadcast(8, 8),
        // Its wider forms read more than one element, and are shuffles.
        M::Vmovddup if m.size(0) == 16 => m.broadcast(8, 8),
        M::Vbroadcastf128 | M::Vbroadcasti128 => m.broadcast(16, 8),
        M::Vbroadcastf32x2 | M::Vbroadcasti32x2 => m.broadcast(8, 4),
        M::Vbroadcastf32x4 | M::Vbroadcasti32x4 => m.broadcast(16, 4),
        M::Vbroadcastf64x2 | M::Vbroadcasti64x2 => m.broadcast(16, 8),
        M::Vbroadcastf32x8 | M::Vbroadcasti32x8 => m.broadcast(32, 4),
        M::Vbroadcastf64x4 | M::Vbroadcasti64x4 => m.broadcast(32, 8),

        M::Pmovzxbw | M::Vpmovzxbw => m.widen(1, 2, false),
        M::Pmovzxbd | M::Vpmovzxbd => m.widen(1, 4, false),
        M::Pmovzxbq | M::Vpmovzxbq => m.widen(1, 8, false),
        M::Pmovzxwd | M::Vpmovzxwd => m.widen(2, 4, false),
        M::Pmovzxwq | M::Vpmovzxwq => m.widen(2, 8, false),
        M::Pmovzxdq | M::Vpmovzxdq => m.widen(4, 8, false),
        M::Pmovsxbw | M::Vpmovsxbw => m.widen(1, 2, true),
        M::Pmovsxbd | M::Vpmovsxbd => m.widen(1, 4, true),
        M::Pmovsxbq | M::Vpmovsxbq => m.widen(1, 8, true),
        M::Pmovsxwd | M::Vpmovsxwd => m.widen(2, 4, true),
        M::Pmovsxwq | M::Vpmovsxwq => m.widen(2, 8, true),
        M::Pmovsxdq | M::Vpmovsxdq => m.widen(4, 8, true),
        M::Vpmovwb => m.narrow(2, 1),
        M::Vpmovdb => m.narrow(4, 1),
        M::Vpmovdw => m.narrow(4, 2),
        M::Vpmovqb => m.narrow(8, 1),
        M::Vpmovqw => m.narrow(8, 2),
        M::Vpmovqd => m.narrow(8, 4),

        M::Maskmovdqu | M::Vmaskmovdqu | M::Maskmovq => m.store_bytes_selected(),
        M::Vpmaskmovd | M::Vmaskmovps => m.move_masked(4),
        M::Vpmaskmovq | M::Vmaskmovpd => m.move_masked(8),
        M::Kmovb | M::Kmovw | M::Kmovd | M::Kmovq => m.move_mask(),

        M::Pcmpeqb | M::Vpcmpeqb => m.compare_elements(1, packed::equal),
        M::Pcmpeqw | M::Vpcmpeqw => m.compare_elements(2, packed::equal),
        M::Pcmpeqd | M::Vpcmpeqd => m.compare_elements(4, packed::equal),
        M::Pcmpeqq | M::Vpcmpeqq => m.compare_elements(8, packed::equal),
        M::Pcmpgtb | M::Vpcmpgtb => m.compare_elements(1, packed::greater),
        M::Pcmpgtw | M::Vpcmpgtw => m.compare_elements(2, packed::greater),
        M::Pcmpgtd | M::Vpcmpgtd => m.compare_elements(4, packed::greater),
        M::Pcmpgtq | M::Vpcmpgtq => m.compare_elements(8, packed::greater),
        M::Vpcmpb => m.compare_by_immediate(1, true),
        M::Vpcmpw => m.compare_by_immediate(2, true),
        M::Vpcmpd => m.compare_by_immediate(4, true),
        M::Vpcmpq => m.compare_by_immediate(8, true),
        M::Vpcmpub => m.compare_by_immediate(1, false),
        M::Vpcmpuw => m.compare_by_immediate(2, false),
        M::Vpcmpud => m.compare_by_immediate(4, false),
        M::Vpcmpuq => m.compare_by_immediate(8, false),
        M::Vptestmb => m.compare_to_mask(1, 2, packed::in_common),
        M::Vptestmw => m.compare_to_mask(2, 2, packed::in_common),
        M::Vptestmd => m.compare_to_mask(4, 2, packed::in_common),
        M::Vptestmq => m.compare_to_mask(8, 2, packed::in_common),
        M::Vptestnmb => m.compare_to_mask(1, 2, packed::nothing_in_common),
        M::Vptestnmw => m.compare_to_mask(2, 2, packed::nothing_in_common),
        M::Vptestnmd => m.compare_to_mask(4, 2, packed::nothing_in_common),
        M::Vptestnmq => m.compare_to_mask(8, 2, packed::nothing_in_common),
        M::Ptest | M::Vptest => m.test_vector(),
        M::Vpternlogd => m.ternary_logic(4),
        M::Vpternlogq => m.ternary_logic(8),

        _ => {
            if let Some((size, f)) = packed::elementwise(mnemonic) {
                m.elementwise(size, f)
            } else if let Some((size, has_first, f)) = packed::lanewise(mnemonic) {
                m.lanewise(size, has_first, f)
            } else {
                Err(m.unsupported())
            }
        }
    }
}
